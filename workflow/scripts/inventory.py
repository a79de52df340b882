"""Checkpoint inventory: what each file of a folder of LoRAs is."""

from job import job

with job(snakemake) as cost:
    from lora_atlas import tables
    from lora_atlas.collection.inventory import inventory, told
    from lora_atlas.loras.folder import find

    p = snakemake.params
    rows = inventory(
        find(p.folder),
        f"{p.cache}/sketches",
        numbers=p.engine["sketch_numbers"],
        pickles=p.engine["pickles"] == "load",
        base=p.engine["base"],
        folder=p.folder,
    )
    tables.write(snakemake.output.table, "loras", rows)
    cost.count = len(rows)
    cost.say(told(rows))
