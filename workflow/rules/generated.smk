"""Generated: what each LoRA generates, over the grid of sampler settings. The picture route's price.

Needs: results/{study}/loras/{artist}/{nn}.safetensors, the base model
Makes: results/{study}/generated/{pack}/{setting}.parquet
"""


rule generate_pictures:
    """Generate pictures with the LoRAs of a pack, at one sampler setting."""
    input:
        loras=lambda wildcards: of_loras(f"{HOME['loras']}/loras", *PACKS[wildcards.pack]),
        base=receipts(config["base"]["model"]),
    output:
        generated=expand(f"{RESULTS}/generated/{{{{pack}}}}/{{setting}}.parquet", setting=SETTINGS),
        cost=f"{RESULTS}/cost/generate/{{pack}}.parquet",
    log:
        f"{RESULTS}/logs/generate/{{pack}}.log",
    conda:
        "../../envs/lora-atlas.yaml"
    threads: config["resources"]["threads"]
    resources:
        gpu=gpus,
        mem_mb=config["resources"]["mem_mb"],
        runtime=runtime,
    params:
        asked=asked(
            "generate_pictures",
            ["diffusion.generate"],
            base=BASE,
            resolution=config["training"]["resolution"],
            settings={each.name: dataclasses.asdict(each) for each in settings.settings(config["generation"])},
            seed=config["seed"],
        ),
    script:
        "../scripts/generate_pictures.py"
