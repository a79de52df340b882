"""A folder of LoRA files that are there: what each is, and a map of those that can be compared.

Needs: the folder named by `folder`
Makes: results/{study}/tables/loras.parquet, results/{study}/tables/neighbours.parquet, results/{study}/atlas.html,
       and for each space of LoRAs with one base
       results/{study}/spaces/{space}/weights/delta.safetensors, weights/weighted.safetensors, neighbours.parquet,
       embedding.parquet, and, of four LoRAs or more, map.png, map.svg

Which spaces there are is known only after the files are read. A stage is one job for all of them, whose output is what
it says of all; files of single spaces stand beside it, and where one is gone the stage is made again.
"""

forget_incomplete()


rule inventory:
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
    """Inner products of the LoRAs of each base, and weights of its modules."""
    input:
        table=f"{RESULTS}/tables/loras.parquet",
    output:
        cost=SPACE_WEIGHTS,
    log:
        f"{RESULTS}/logs/space_weights.log",
    conda:
        "../../envs/lora-atlas.yaml"
    threads: workflow.cores
    resources:
        mem_mb=config["resources"]["mem_mb"],
        runtime=runtime,
    params:
        code=code("space_weights", "weights.engine", "collection.spaces", "loras.folder"),
        folder=SPACES,
        engine=ENGINE,
        cache=cache_folder(RESULTS),
        weighting=descriptors.baseless(config["weights"]["modules"]),
        weights={key: config["weights"][key] for key in ("components", "blocks")},
    script:
        "../scripts/space_weights.py"


rule space_neighbours:
    """Nearest neighbours of each LoRA among those of its base."""
    input:
        table=f"{RESULTS}/tables/loras.parquet",
        weights=SPACE_WEIGHTS,
    output:
        neighbours=f"{RESULTS}/tables/neighbours.parquet",
    log:
        f"{RESULTS}/logs/space_neighbours.log",
    localrule: True
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        code=code("space_neighbours", "collection.query", "collection.spaces", "embeddings.describe"),
        folder=SPACES,
        weights={key: config["weights"][key] for key in ("components", "blocks")},
    script:
        "../scripts/space_neighbours.py"


rule space_maps:
    """Write a map of the LoRAs of each base, and the page of them all."""
    input:
        table=f"{RESULTS}/tables/loras.parquet",
        neighbours=f"{RESULTS}/tables/neighbours.parquet",
    output:
        page=report(PAGE, category="Pages", caption="../report/folder.rst", labels={"page": "atlas"}),
    log:
        f"{RESULTS}/logs/space_maps.log",
    localrule: True
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        code=code("space_maps", "atlas.folder", "collection.spaces", "loras.folder"),
        study=STUDY,
        folder=SPACES,
        # Previews beside the files are shown, and they change without the files.
        files=lambda wildcards: LORA_FILES,
        seed=config["seed"],
    script:
        "../scripts/space_maps.py"
