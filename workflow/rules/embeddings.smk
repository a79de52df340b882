"""Embeddings: every descriptor, from weights or from pictures, as one table of one shape.

Needs: results/{study}/plan.parquet; results/{study}/weights/{kernel}.safetensors,
       results/{study}/features/{extractor}/{source}.parquet, or (controls) results/{study}/loras
Makes: results/{study}/embeddings/{descriptor}.parquet
"""

# What the inner products of the weights are made of, for the embeddings and for what embeds them again.
PRODUCTS = {
    "grams": rules_of("weights"),
    "modules": [f"{RESULTS}/weights/modules/all.safetensors"] * bool(WEIGHTED),
    "base": [f"{RESULTS}/weights/modules/base.safetensors"] * bool(BASED),
    "plan": f"{HOME['plan']}/plan.parquet",
}


rule embed_weights:
    """Vectors of all LoRAs by the descriptors of their weights."""
    input:
        **PRODUCTS,
    output:
        embeddings_of(WEIGHT_DESCRIPTORS),
    log:
        f"{RESULTS}/logs/embed_weights.log",
    conda:
        "../../envs/lora-atlas.yaml"
    resources:
        mem_mb=mem_of_modules,
    params:
        asked=asked(
            "embed_weights",
            ["embeddings.describe", "weights.metric"],
            descriptors=descriptors.stored(WEIGHT_DESCRIPTORS),
            weights=only(config["weights"], "kernels", "components", "blocks"),
            embedding=config["embedding"],
            seed=config["seed"],
        ),
    script:
        "../scripts/embed_weights.py"


if CONTROL_DESCRIPTORS:

    # What LoRAs are without direction: their norms, their singular values, the sizes of their training sets.
    rule embed_controls:
        """Vectors by controls that need no picture: norms, singular values, sizes of training sets."""
        input:
            loras=LISTED_LORAS,
            plan=f"{HOME['plan']}/plan.parquet",
            pictures=rules_of("pictures") if "content" in config["weights"]["controls"] else [],
        output:
            embeddings_of(CONTROL_DESCRIPTORS),
        log:
            f"{RESULTS}/logs/embed_controls.log",
        conda:
            "../../envs/lora-atlas.yaml"
        params:
            asked=asked(
                "embed_controls",
                ["embeddings.describe", "loras.listed", "weights.spectrum", "study"],
                controls=config["weights"]["controls"],
                embedding=config["embedding"],
                seed=config["seed"],
            ),
        script:
            "../scripts/embed_controls.py"


if PICTURE_DESCRIPTORS:

    rule embed_pictures:
        """Vectors of all LoRAs by features of their training pictures, or of what they generate."""
        input:
            features=rules_of("features"),
            plan=f"{HOME['plan']}/plan.parquet",
        output:
            embeddings_of(PICTURE_DESCRIPTORS),
        log:
            f"{RESULTS}/logs/embed_pictures.log",
        conda:
            "../../envs/lora-atlas.yaml"
        params:
            asked=asked(
                "embed_pictures",
                ["embeddings.describe"],
                descriptors=descriptors.stored(PICTURE_DESCRIPTORS),
                libraries={name: each["library"] for name, each in config["extractors"].items()},
                embedding=config["embedding"],
                seed=config["seed"],
            ),
        script:
            "../scripts/embed_pictures.py"
