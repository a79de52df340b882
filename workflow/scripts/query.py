"""Rule query: the known LoRAs that a file is nearest to."""

from job import job

with job(snakemake) as cost:
    from pathlib import Path

    from lora_atlas import tables
    from lora_atlas.collection.known import collections
    from lora_atlas.collection.query import query, told

    p = snakemake.params
    options = {"pickles": p.options["pickles"] == "load", "base": p.options["base"]}
    known = collections(Path(snakemake.output[0]).parents[1], weighting=p.weighting, **options)
    rows = query([p.query], known, **p.weights, **options)
    tables.write(snakemake.output[0], "query", rows)
    cost.say(told(rows))
