"""Tables: how well each descriptor tells artists and genres, and what it cost.

Needs: results/{study}/embeddings/{descriptor}.parquet of all descriptors, results/{study}/cost/{stage}/{item}.parquet
Makes: results/{study}/tables/clustering.parquet, retrieval.parquet, cost.parquet
"""


rule tables:
    input:
        rules_of("tables"),
    localrule: True


rule clustering:
    input:
        embeddings=rules_of("embeddings"),
        code=code("metrics.clustering"),
    output:
        f"{RESULTS}/tables/clustering.parquet",
    log:
        f"{RESULTS}/logs/clustering.log",
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        descriptors=WEIGHT_DESCRIPTORS + PICTURE_DESCRIPTORS,
        evaluation=config["evaluation"],
        seed=config["seed"],
    script:
        "../scripts/clustering.py"


rule retrieval:
    input:
        embeddings=rules_of("embeddings"),
        code=code("metrics.retrieval"),
    output:
        f"{RESULTS}/tables/retrieval.parquet",
    log:
        f"{RESULTS}/logs/retrieval.log",
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        descriptors=WEIGHT_DESCRIPTORS + PICTURE_DESCRIPTORS,
        kinds=KINDS,
        calibration=config["embedding"]["calibration"],
        evaluation=config["evaluation"],
        seed=config["seed"],
    script:
        "../scripts/retrieval.py"


rule cost:
    input:
        cost=cost_files,
        code=code("tables"),
    output:
        f"{RESULTS}/tables/cost.parquet",
    log:
        f"{RESULTS}/logs/cost.log",
    localrule: True
    conda:
        "../../envs/lora-atlas.yaml"
    script:
        "../scripts/cost.py"
