"""Rule collect_pictures: one artist's pictures from the source into a table."""

import json

from job import asked, job

with job(snakemake):
    from lora_atlas import tables
    from lora_atlas.pictures.sources import collect, fetch
    from lora_atlas.sections import Pictures

    p, r = asked(snakemake), snakemake.resources
    placed = ("artists_per_genre", "manifest", "private_network", "store")
    where = {key: snakemake.config["pictures"][key] for key in placed}
    pictures = Pictures(**{**p.pictures, **where})
    everyone = pictures | {"artists": json.loads(r.artists), "contact": r.contact}
    fetch(snakemake.wildcards.artist, everyone, json.loads(r.plan), p.seed)
    rows = collect(snakemake.wildcards.artist, p.genre, pictures, snakemake.config["folder"], p.seed)
    tables.write(snakemake.output[0], "pictures", rows)
