"""LoRAs: all of an artist's, trained together in one model.

Needs: results/{study}/plan/{artist}.parquet, results/{study}/pictures/{artist}.parquet, the base model
Makes: results/{study}/loras/{artist}/{nn}.safetensors and log.parquet
"""


rule loras:
    input:
        rules_of("loras"),
    localrule: True


# A killed job goes on from its state folder, which is not declared here: it would be deleted with the outputs.
rule train_loras:
    input:
        plan="results/{study}/plan/{artist}.parquet",
        pictures="results/{study}/pictures/{artist}.parquet",
        base=model_files(config["base"]["model"]),
        code=code("diffusion.train"),
    output:
        loras=expand("results/{{study}}/loras/{{artist}}/{number}.safetensors", number=NUMBERS),
        log="results/{study}/loras/{artist}/log.parquet",
        cost="results/{study}/cost/train/{artist}.parquet",
    log:
        "results/{study}/logs/train/{artist}.log",
    threads: config["resources"]["threads"]
    resources:
        gpu=gpus,
        mem_mb=config["resources"]["mem_mb"],
        runtime=runtime,
    params:
        base=config["base"],
        training=config["training"],
        seed=config["seed"],
        device=config["resources"]["device"],
        state="results/{study}/state/{artist}",
    script:
        "../scripts/train_loras.py"
