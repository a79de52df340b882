"""Rule fetch_pictures: what the study needs of its manifest, into the store that all studies share."""

from job import job

with job(snakemake):
    from lora_atlas import tables
    from lora_atlas.pictures.sources import source
    from lora_atlas.study import require

    p = snakemake.params
    rows = source(p.pictures).fetch(p.pictures, p.seed)
    kept = dict.fromkeys(p.artists, 0)
    for row in rows:
        kept[row["artist"]] += row["status"] == "kept"
    # Only now: what could be fetched was fetched, and the next run asks for nothing twice.
    require(kept, p.plan, f"after fetching (the reasons stand in {snakemake.log[0]}; another run asks again)")
    tables.write(snakemake.output[0], "fetched", rows)
