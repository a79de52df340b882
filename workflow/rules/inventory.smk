"""A folder of LoRA files that are there: what each is, and a map of those that can be compared.

Needs: the folder named by `folder`
Makes: results/{study}/tables/loras.parquet, and for each space of LoRAs with one base
       results/{study}/spaces/{space}/weights/delta.safetensors, neighbours.parquet, embedding.parquet, and
       map.png, map.svg, atlas.html
"""


# Which bases the files are of is known only after they are read.
checkpoint inventory:
    input:
        code=code("weights.inventory"),
    output:
        table="results/{study}/tables/loras.parquet",
        cost="results/{study}/cost/inventory/files.parquet",
    log:
        "results/{study}/logs/inventory.log",
    conda:
        "../../envs/lora-atlas.yaml"
    resources:
        mem_mb=config["resources"]["mem_mb"],
        runtime=runtime,
    params:
        folder=config["folder"],
        # Not as inputs: the names of people's files hold whatever a file system allows.
        files=LORA_FILES,
        engine=ENGINE,
        cache=cache_folder("results/{study}"),
    script:
        "../scripts/inventory.py"


rule space_weights:
    input:
        table="results/{study}/tables/loras.parquet",
        code=code("weights.engine"),
    output:
        gram="results/{study}/spaces/{space}/weights/delta.safetensors",
        cost="results/{study}/cost/gram/{space}.parquet",
    log:
        "results/{study}/logs/space_weights/{space}.log",
    conda:
        "../../envs/lora-atlas.yaml"
    threads: workflow.cores
    resources:
        mem_mb=config["resources"]["mem_mb"],
        runtime=runtime,
    params:
        engine=ENGINE,
        cache=cache_folder("results/{study}"),
    script:
        "../scripts/space_weights.py"


rule space_neighbours:
    input:
        table="results/{study}/tables/loras.parquet",
        gram="results/{study}/spaces/{space}/weights/delta.safetensors",
        code=code("weights.query", "embeddings"),
    output:
        neighbours="results/{study}/spaces/{space}/neighbours.parquet",
        embedding="results/{study}/spaces/{space}/embedding.parquet",
    log:
        "results/{study}/logs/space_neighbours/{space}.log",
    localrule: True
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        weights={key: config["weights"][key] for key in ("components", "blocks")},
        dimensions=config["embedding"]["dimensions"],
    script:
        "../scripts/space_neighbours.py"


rule space_map:
    input:
        table="results/{study}/tables/loras.parquet",
        neighbours="results/{study}/spaces/{space}/neighbours.parquet",
        embedding="results/{study}/spaces/{space}/embedding.parquet",
        code=code("atlas.collection"),
    output:
        expand("results/{{study}}/spaces/{{space}}/{name}", name=["map.png", "map.svg", "atlas.html"]),
    log:
        "results/{study}/logs/space_map/{space}.log",
    localrule: True
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        seed=config["seed"],
    script:
        "../scripts/space_map.py"


rule maps:
    input:
        spaces_of_folder,
    localrule: True
