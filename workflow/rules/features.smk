"""Features: what image models, and simple controls, see in the training pictures and in the generated ones.

Needs: results/{study}/pictures/{artist}.parquet, results/{study}/generated/{pack}/{setting}.parquet
Makes: results/{study}/features/{extractor}/{source}.parquet
"""


# One job an extractor: its model is loaded once.
rule extract_features:
    """Features of pictures by one extractor."""
    input:
        training=rules_of("pictures"),
        generated=when_asked("generated"),
        model=lambda wildcards: receipts(config["extractors"][wildcards.extractor]["model"]),
    output:
        features=expand(f"{RESULTS}/features/{{{{extractor}}}}/{{source}}.parquet", source=["training", *SETTINGS]),
        cost=f"{RESULTS}/cost/features/{{extractor}}.parquet",
    log:
        f"{RESULTS}/logs/features/{{extractor}}.log",
    wildcard_constraints:
        extractor="|".join(MODELS) or "none",
    conda:
        "../../envs/lora-atlas.yaml"
    threads: config["resources"]["threads"]
    resources:
        gpu=gpus,
        mem_mb=config["resources"]["mem_mb"],
        runtime=runtime,
    params:
        asked=asked(
            "extract_features",
            ["features.extract"],
            extractor=lambda wildcards: described(config["extractors"][wildcards.extractor]),
            settings=sorted(SETTINGS),
        ),
    script:
        "../scripts/extract_features.py"


# Controls describe the training pictures alone, by what is no style.
rule extract_controls:
    """Controls that describe training pictures by what is no style."""
    input:
        training=rules_of("pictures"),
    output:
        features=[f"{RESULTS}/features/{{extractor}}/training.parquet"],
        cost=f"{RESULTS}/cost/features/{{extractor}}.parquet",
    log:
        f"{RESULTS}/logs/features/{{extractor}}.log",
    wildcard_constraints:
        extractor="|".join(CONTROLS) or "none",
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        asked=asked(
            "extract_features",
            ["features.extract"],
            extractor=lambda wildcards: described(config["extractors"][wildcards.extractor]),
            settings=[],
        ),
    script:
        "../scripts/extract_features.py"
