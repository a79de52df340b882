"""LoRAs: those of one or several artists, trained together in one model.

Needs: results/{study}/plan/{artist}.parquet, results/{study}/pictures/{artist}.parquet, the base model
Makes: results/{study}/loras/{artist}/{nn}.safetensors and log.parquet, results/{study}/loras/list.parquet,
       results/{study}/kohya/{artist}/{nn}.safetensors
"""


# A killed job goes on from its state folder, which is not declared here: it would be deleted with the outputs.
rule train_loras:
    """Train the LoRAs of a pack of artists together."""
    input:
        plans=lambda wildcards: expand("{h}/plan/{a}.parquet", h=HOME["plan"], a=PACKS[wildcards.pack]),
        pictures=lambda wildcards: expand("{h}/pictures/{a}.parquet", h=HOME["pictures"], a=painters(wildcards.pack)),
        base=receipts(config["base"]["model"]),
    output:
        pack=temp(directory(f"{RESULTS}/packs/{{pack}}")),
        cost=f"{RESULTS}/cost/train/{{pack}}.parquet",
    log:
        f"{RESULTS}/logs/train/{{pack}}.log",
    conda:
        "../../envs/lora-atlas.yaml"
    threads: config["resources"]["threads"]
    resources:
        gpu=gpus,
        mem_mb=config["resources"]["mem_mb"],
        runtime=runtime,
        # Not params: a LoRA does not depend on them, and what is trained stays as it is when they change.
        loras_per_pack=str(config["resources"]["loras_per_pack"]),
        checkpoint_every=config["resources"]["checkpoint_every"],
        time_budget=time_budget,
        gradient_checkpointing=int(config["resources"]["gradient_checkpointing"]),
        compile=int(config["resources"]["compile"]),
    params:
        asked=asked(
            "train_loras",
            ["diffusion.train"],
            base=BASE,
            numbers=NUMBERS,
            mixtures=config["plan"]["mixtures"],
            training=config["training"],
            seed=config["seed"],
        ),
    script:
        "../scripts/train_loras.py"


# Each artist's files to their own place, so that what follows need not know who was trained with whom.
rule unpack_loras:
    """Put an artist's LoRAs into the artist's folder."""
    input:
        lambda wildcards: f"{RESULTS}/packs/{pack_of(wildcards.artist)}",
    output:
        loras=of_loras(f"{RESULTS}/loras", "{artist}"),
        log=f"{RESULTS}/loras/{{artist}}/log.parquet",
    log:
        f"{RESULTS}/logs/unpack/{{artist}}.log",
    localrule: True
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        asked=asked("unpack_loras", ["store"]),
    script:
        "../scripts/unpack_loras.py"


# Stages that read all LoRAs depend on this list: Snakemake looks for the producer of every input of every job.
rule list_loras:
    """List all LoRAs and what their files hold."""
    input:
        when_asked("loras"),
    output:
        LISTED_LORAS,
    log:
        f"{RESULTS}/logs/list_loras.log",
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        asked=asked("list_loras", ["loras.listed"]),
    script:
        "../scripts/list_loras.py"


# The same LoRAs under the names that kohya's scripts, ComfyUI and web UIs use.
rule export_kohya:
    """Write an artist's LoRAs under kohya's names."""
    input:
        loras=of_loras(f"{RESULTS}/loras", "{artist}"),
    output:
        of_loras(f"{RESULTS}/kohya", "{artist}"),
    log:
        f"{RESULTS}/logs/kohya/{{artist}}.log",
    localrule: True
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        asked=asked(
            "export_kohya",
            ["diffusion.kohya"],
        ),
    script:
        "../scripts/export_kohya.py"
