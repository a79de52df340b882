"""Tables: how well each descriptor tells artists and genres, beside its controls; what one LoRA is worth; what it cost.

Needs: results/{study}/embeddings/{descriptor}.parquet of all descriptors, results/{study}/weights/*.safetensors,
       results/{study}/features/{extractor}/{setting}.parquet, results/{study}/cost/{stage}/{item}.parquet
Makes: results/{study}/tables/
         clustering.parquet, clustering_differences.parquet
         retrieval.parquet, queries.parquet, differences.parquet, controls.parquet, drift.parquet, crowd.parquet
         structure.parquet, grid.parquet, ablation.parquet
         worth.parquet, worth_queries.parquet, crossings.parquet
         module_weights.parquet, cost.parquet
"""


rule clustering:
    """Do clusters of LoRAs agree with artists and genres?"""
    input:
        embeddings=rules_of("embeddings"),
    output:
        clustering=f"{RESULTS}/tables/clustering.parquet",
        differences=f"{RESULTS}/tables/clustering_differences.parquet",
    log:
        f"{RESULTS}/logs/clustering.log",
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        asked=asked(
            "clustering",
            ["metrics.clustering"],
            descriptors=[each.name for each in DESCRIBED],
            told=TOLD,
            evaluation=only(config["evaluation"], "confidence", "restarts", "permutations"),
            seed=config["seed"],
        ),
    script:
        "../scripts/clustering.py"


rule retrieval:
    """Do the LoRAs nearest to a query have its artist? And how do descriptors differ?"""
    input:
        embeddings=rules_of("embeddings"),
    output:
        retrieval=f"{RESULTS}/tables/retrieval.parquet",
        queries=f"{RESULTS}/tables/queries.parquet",
        differences=f"{RESULTS}/tables/differences.parquet",
        controls=f"{RESULTS}/tables/controls.parquet",
        drift=f"{RESULTS}/tables/drift.parquet",
        crowd=f"{RESULTS}/tables/crowd.parquet",
    log:
        f"{RESULTS}/logs/retrieval.log",
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        asked=asked(
            "retrieval",
            ["metrics.retrieval", "metrics.margins", "metrics.drift", "metrics.crowd"],
            descriptors=[each.name for each in DESCRIBED],
            told=TOLD,
            evaluation=only(config["evaluation"], "confidence", "permutations"),
            seed=config["seed"],
        ),
    script:
        "../scripts/retrieval.py"


# Descriptors that compare across sources describe no LoRA by one thing: they are left out here.
rule structure:
    """Do two descriptors arrange LoRAs alike?"""
    input:
        embeddings=embeddings_of(COMPARED),
        plan=rules_of("plan"),
    output:
        f"{RESULTS}/tables/structure.parquet",
    log:
        f"{RESULTS}/logs/structure.log",
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        asked=asked(
            "structure",
            ["metrics.structure", "views", "tables"],
            descriptors=[each.name for each in COMPARED],
            view=VIEW,
            evaluation=only(config["evaluation"], "confidence", "permutations"),
            seed=config["seed"],
        ),
    script:
        "../scripts/structure.py"


# The same grid of dimensions, whitening, calibration and distance for every descriptor.
rule grid:
    """Retrieval for every number of dimensions, whitening, calibration and distance."""
    input:
        **PRODUCTS,
        features=rules_of("features"),
    output:
        f"{RESULTS}/tables/grid.parquet",
    log:
        f"{RESULTS}/logs/grid.log",
    conda:
        "../../envs/lora-atlas.yaml"
    resources:
        mem_mb=mem_of_modules,
    params:
        asked=asked(
            "grid",
            ["metrics.grid", "embeddings.describe", "weights.metric"],
            descriptors=descriptors.stored([each for each in COMPARED if not each.control]),
            weights=only(config["weights"], "kernels", "components", "blocks"),
            libraries={name: each["library"] for name, each in config["extractors"].items()},
            view=VIEW,
            embedding=config["embedding"],
            evaluation=only(config["evaluation"], "confidence"),
            seed=config["seed"],
        ),
    script:
        "../scripts/grid.py"


# Which modules, and which of their factors, hold what tells artists.
rule ablation:
    """Which modules, and which of their factors, hold what distinguishes artists?"""
    input:
        grams=f"{RESULTS}/weights/modules/all.safetensors",
        plan=rules_of("plan"),
    output:
        f"{RESULTS}/tables/ablation.parquet",
    log:
        f"{RESULTS}/logs/ablation.log",
    conda:
        "../../envs/lora-atlas.yaml"
    resources:
        mem_mb=mem_of_modules,
    params:
        asked=asked(
            "ablation",
            ["metrics.ablation", "weights.modules"],
            view=VIEW,
            embedding=config["embedding"],
            evaluation=only(config["evaluation"], "confidence", "subsets"),
            seed=config["seed"],
        ),
    script:
        "../scripts/ablation.py"


# How much each module counts, by each weighting, and how large it is.
rule module_weights:
    """How much each module counts by each weighting, and how large it is."""
    input:
        plan=PRODUCTS["plan"],
        base=PRODUCTS["base"],
        all=f"{RESULTS}/weights/modules/all.safetensors",
    output:
        f"{RESULTS}/tables/module_weights.parquet",
    log:
        f"{RESULTS}/logs/module_weights.log",
    conda:
        "../../envs/lora-atlas.yaml"
    resources:
        mem_mb=mem_of_modules,
    params:
        asked=asked(
            "module_weights",
            ["weights.weighting", "weights.modules", "weights.metric", "tables"],
            kernels=config["weights"]["kernels"],
            weightings=config["weights"]["modules"],
        ),
    script:
        "../scripts/module_weights.py"


if SETTINGS:

    # How many generated pictures retrieve as well as the weights.
    rule worth:
        """How many generated pictures retrieve as well as the weights?"""
        input:
            features=[f"{RESULTS}/features/{each.extractor}/{each.source}.parquet" for each in PAINTED],
            queries=f"{RESULTS}/tables/queries.parquet",
            cost=f"{RESULTS}/tables/cost.parquet",
            plan=rules_of("plan"),
        output:
            worth=f"{RESULTS}/tables/worth.parquet",
            queries=f"{RESULTS}/tables/worth_queries.parquet",
            crossings=f"{RESULTS}/tables/crossings.parquet",
        log:
            f"{RESULTS}/logs/worth.log",
        conda:
            "../../envs/lora-atlas.yaml"
        params:
            asked=asked(
                "worth",
                ["metrics.worth", "findings.cost"],
                descriptors=[each.name for each in PAINTED],
                told=TOLD,
                embedding=config["embedding"],
                evaluation=only(config["evaluation"], "confidence", "bootstrap", "draws"),
                seed=config["seed"],
            ),
        script:
            "../scripts/worth.py"


rule cost:
    """Seconds of every costly job, in one table."""
    input:
        cost=cost_files,
    output:
        f"{RESULTS}/tables/cost.parquet",
    log:
        f"{RESULTS}/logs/cost.log",
    localrule: True
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        asked=asked(
            "cost",
            ["tables"],
        ),
    script:
        "../scripts/cost.py"
