"""A folder of LoRA files that are there: what each is, and a map of those that can be compared.

Needs: the folder named by `folder`
Makes: results/{study}/tables/loras.parquet, and for each space of LoRAs with one base
       results/{study}/spaces/{space}/weights/delta.safetensors, weights/weighted.safetensors, neighbours.parquet, embedding.parquet, and
       map.png, map.svg, atlas.html
"""


# Which bases the files are of is known only after they are read.
checkpoint inventory:
    """Read a folder of LoRA files: what each is of, what is wrong with it, which are copies."""
    output:
        table=f"{RESULTS}/tables/loras.parquet",
        cost=f"{RESULTS}/cost/inventory/files.parquet",
    log:
        f"{RESULTS}/logs/inventory.log",
    conda:
        "../../envs/lora-atlas.yaml"
    resources:
        mem_mb=config["resources"]["mem_mb"],
        runtime=runtime,
    params:
        code=code("inventory", "collection.inventory"),
        # A function: text with braces is then no pattern.
        folder=lambda wildcards: config["folder"],
        # Not as inputs: the names of people's files hold whatever a file system allows.
        files=lambda wildcards: LORA_FILES,
        engine=ENGINE,
        cache=cache_folder(RESULTS),
    script:
        "../scripts/inventory.py"


rule space_weights:
    """Inner products of the LoRAs of one base, and weights of its modules."""
    input:
        table=f"{RESULTS}/tables/loras.parquet",
    output:
        gram=f"{RESULTS}/spaces/{{space}}/weights/delta.safetensors",
        weighted=f"{RESULTS}/spaces/{{space}}/weights/weighted.safetensors",
        cost=f"{RESULTS}/cost/gram/{{space}}.parquet",
    log:
        f"{RESULTS}/logs/space_weights/{{space}}.log",
    conda:
        "../../envs/lora-atlas.yaml"
    threads: workflow.cores
    resources:
        mem_mb=config["resources"]["mem_mb"],
        runtime=runtime,
    params:
        code=code("space_weights", "weights.engine"),
        engine=ENGINE,
        cache=cache_folder(RESULTS),
        weighting=descriptors.baseless(config["weights"]["modules"]),
        weights={key: config["weights"][key] for key in ("components", "blocks")},
    script:
        "../scripts/space_weights.py"


rule space_neighbours:
    """Nearest neighbours of each LoRA of one base."""
    input:
        table=f"{RESULTS}/tables/loras.parquet",
        gram=f"{RESULTS}/spaces/{{space}}/weights/delta.safetensors",
        weighted=f"{RESULTS}/spaces/{{space}}/weights/weighted.safetensors",
    output:
        neighbours=f"{RESULTS}/spaces/{{space}}/neighbours.parquet",
        embedding=f"{RESULTS}/spaces/{{space}}/embedding.parquet",
    log:
        f"{RESULTS}/logs/space_neighbours/{{space}}.log",
    localrule: True
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        code=code("space_neighbours", "collection.query", "embeddings.describe"),
        weights={key: config["weights"][key] for key in ("components", "blocks")},
    script:
        "../scripts/space_neighbours.py"


rule space_map:
    """The map of the LoRAs of one base, and its page."""
    input:
        table=f"{RESULTS}/tables/loras.parquet",
        neighbours=f"{RESULTS}/spaces/{{space}}/neighbours.parquet",
        embedding=f"{RESULTS}/spaces/{{space}}/embedding.parquet",
    output:
        expand(f"{RESULTS}/spaces/{{{{space}}}}/{{name}}", name=["map.png", "map.svg", "atlas.html"]),
    log:
        f"{RESULTS}/logs/space_map/{{space}}.log",
    localrule: True
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        code=code("space_map", "atlas.collection"),
        seed=config["seed"],
    script:
        "../scripts/space_map.py"
