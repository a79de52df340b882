"""Embeddings: every descriptor, from weights or from pictures, as one table of one shape.

Needs: results/{study}/plan.parquet; results/{study}/weights/{kernel}.safetensors,
       results/{study}/features/{extractor}/{source}.parquet, or (controls) results/{study}/loras
Makes: results/{study}/embeddings/{descriptor}.parquet
"""


rule embeddings:
    input:
        rules_of("embeddings"),
    localrule: True


rule embed_weights:
    input:
        grams=rules_of("weights"),
        plan=f"{HOME['plan']}/plan.parquet",
        code=code("embeddings"),
    output:
        expand("{r}/embeddings/{d}.parquet", r=RESULTS, d=WEIGHT_DESCRIPTORS),
    log:
        f"{RESULTS}/logs/embed_weights.log",
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        descriptors=WEIGHT_DESCRIPTORS,
        weights=config["weights"],
        embedding=config["embedding"],
        seed=config["seed"],
    script:
        "../scripts/embed_weights.py"


if CONTROL_DESCRIPTORS:

    # What LoRAs are without direction: their norms, their singular values, the sizes of their training sets.
    rule embed_controls:
        input:
            loras=rules_of("loras"),
            plan=f"{HOME['plan']}/plan.parquet",
            code=code("embeddings", "weights.spectrum"),
        output:
            expand("{r}/embeddings/{d}.parquet", r=RESULTS, d=CONTROL_DESCRIPTORS),
        log:
            f"{RESULTS}/logs/embed_controls.log",
        conda:
            "../../envs/lora-atlas.yaml"
        params:
            descriptors=CONTROL_DESCRIPTORS,
            weights=config["weights"],
            embedding=config["embedding"],
            seed=config["seed"],
        script:
            "../scripts/embed_controls.py"


if PICTURE_DESCRIPTORS:

    rule embed_pictures:
        input:
            features=rules_of("features"),
            plan=f"{HOME['plan']}/plan.parquet",
            code=code("embeddings"),
        output:
            expand("{r}/embeddings/{d}.parquet", r=RESULTS, d=PICTURE_DESCRIPTORS),
        log:
            f"{RESULTS}/logs/embed_pictures.log",
        conda:
            "../../envs/lora-atlas.yaml"
        params:
            descriptors=PICTURE_DESCRIPTORS,
            extractors=config["extractors"],
            settings=SETTINGS,
            embedding=config["embedding"],
            seed=config["seed"],
        script:
            "../scripts/embed_pictures.py"
