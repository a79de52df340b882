"""Weights: inner products of all LoRAs, per component and block.

Needs: results/{study}/loras/list.parquet and the files that it lists; the base model
Makes: results/{study}/weights/{kernel}.safetensors, results/{study}/weights/modules/all.safetensors (single modules),
       results/{study}/weights/modules/base.safetensors (how much each layer matters to the base)
"""


# What is known of files by their content is kept in a folder that is not declared here: it would be deleted with the
# outputs, and a new LoRA is to cost its own row.
rule gram:
    """Inner products of all LoRAs by one kernel."""
    input:
        loras=LISTED_LORAS,
    output:
        gram=f"{RESULTS}/weights/{{kernel}}.safetensors",
        cost=f"{RESULTS}/cost/gram/{{kernel}}.parquet",
    log:
        f"{RESULTS}/logs/gram/{{kernel}}.log",
    conda:
        "../../envs/lora-atlas.yaml"
    resources:
        mem_mb=config["resources"]["mem_mb"],
        runtime=runtime,
        cache=cache_folder(RESULTS),
    params:
        asked=asked(
            "gram",
            ["loras.listed", "weights.engine"],
            kernel=lambda wildcards: wildcards.kernel,
            engine=ENGINE,
        ),
    script:
        "../scripts/gram.py"


if BASED:

    # How much each layer matters to the base. It is kept for all studies of the same base, in a folder that is not
    # declared here: it would be deleted with the outputs.
    rule base_sensitivity:
        """How much each layer matters to the base."""
        input:
            force_changed,
            base=receipts(config["base"]["model"]),
        output:
            base=f"{RESULTS}/weights/modules/base.safetensors",
            cost=f"{RESULTS}/cost/base/sensitivity.parquet",
        log:
            f"{RESULTS}/logs/base_sensitivity.log",
        conda:
            "../../envs/lora-atlas.yaml"
        threads: config["resources"]["threads"]
        resources:
            gpu=gpus,
            mem_mb=config["resources"]["mem_mb"],
            runtime=runtime,
        params:
            asked=asked(
                "base_sensitivity",
                ["diffusion.sensitivity"],
                base=BASE,
                targets=config["training"]["targets"],
                resolution=config["training"]["resolution"],
                probe=config["weights"]["probe"],
                moments=descriptors.KFAC in BASED,
            ),
        script:
            "../scripts/base_sensitivity.py"


# Inner products module by module: for descriptors that weigh modules, and for the ablation.
rule module_grams:
    """Inner products of all LoRAs, module by module."""
    input:
        loras=LISTED_LORAS,
        base=[f"{RESULTS}/weights/modules/base.safetensors"] * (descriptors.KFAC in BASED),
    output:
        grams=f"{RESULTS}/weights/modules/all.safetensors",
        cost=f"{RESULTS}/cost/gram/modules.parquet",
    log:
        f"{RESULTS}/logs/gram/modules.log",
    conda:
        "../../envs/lora-atlas.yaml"
    resources:
        mem_mb=config["resources"]["mem_mb"],
        runtime=runtime,
    params:
        asked=asked(
            "module_grams",
            ["loras.listed", "weights.modules"],
            kernels=descriptors.module_kernels(KERNELS, descriptors.KFAC in BASED),
        ),
    script:
        "../scripts/module_grams.py"
