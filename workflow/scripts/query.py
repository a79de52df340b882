"""Rule query: the known LoRAs that a file is nearest to."""

from job import job

with job(snakemake) as cost:
    from pathlib import Path

    from lora_atlas import origin, tables
    from lora_atlas.atlas.asked import write
    from lora_atlas.collection.known import collections
    from lora_atlas.collection.query import query, told

    p, out = snakemake.params, snakemake.output
    options = {"pickles": p.options["pickles"] == "load", "base": p.options["base"]}
    known = collections(Path(out.table).parents[1], weighting=p.weighting, folder=snakemake.config["folder"], **options)
    rows = query([p.query], known, **p.weights, **options)
    origin.keep_asked(out.table, p.query)
    tables.write(out.table, "query", rows)
    write(out.page, p.study, rows, linked=p.linked)
    cost.say(f"{told(rows)}\nas a page: {out.page}")
