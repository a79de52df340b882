"""Weights: inner products of all LoRAs, per component and block.

Needs: results/{study}/loras/{artist}/{nn}.safetensors of all artists
Makes: results/{study}/weights/{kernel}.safetensors
"""


rule weights:
    input:
        rules_of("weights"),
    localrule: True


# What is known of files by their content is kept in a folder that is not declared here: it would be deleted with the
# outputs, and a new LoRA is to cost its own row.
rule gram:
    input:
        loras=rules_of("loras"),
        code=code("weights.engine"),
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
    params:
        ids=[lora for artist in ARTISTS for lora in studies.lora_ids(artist, config["plan"])],
        kernel="{kernel}",
        engine=ENGINE,
        cache=cache_folder(RESULTS),
    script:
        "../scripts/gram.py"


# Inner products module by module, for the ablation, which picks modules at random.
rule module_grams:
    input:
        loras=rules_of("loras"),
        code=code("weights.modules"),
    output:
        f"{RESULTS}/weights/modules/all.safetensors",
    log:
        f"{RESULTS}/logs/gram/modules.log",
    conda:
        "../../envs/lora-atlas.yaml"
    resources:
        mem_mb=config["resources"]["mem_mb"],
        runtime=runtime,
    params:
        ids=[lora for artist in ARTISTS for lora in studies.lora_ids(artist, config["plan"])],
        kernels=["delta", "down", "up"],
    script:
        "../scripts/module_grams.py"
