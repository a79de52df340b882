"""Generated: what each LoRA paints, over the grid of sampler settings. The picture route's price.

Needs: results/{study}/loras/{artist}/{nn}.safetensors, the base model
Makes: results/{study}/generated/{artist}/{setting}.parquet
"""


rule generated:
    input:
        rules_of("generated"),
    localrule: True


rule generate_pictures:
    input:
        loras=expand("results/{{study}}/loras/{{artist}}/{number}.safetensors", number=NUMBERS),
        base=model_files(config["base"]["model"]),
        code=code("diffusion.generate"),
    output:
        generated=expand("results/{{study}}/generated/{{artist}}/{setting}.parquet", setting=SETTINGS),
        cost="results/{study}/cost/generate/{artist}.parquet",
    log:
        "results/{study}/logs/generate/{artist}.log",
    threads: config["resources"]["threads"]
    resources:
        gpu=gpus,
        mem_mb=config["resources"]["mem_mb"],
        runtime=runtime,
    params:
        base=config["base"],
        resolution=config["training"]["resolution"],
        generation=config["generation"],
        settings=SETTINGS,
        seed=config["seed"],
        device=config["resources"]["device"],
    script:
        "../scripts/generate_pictures.py"
