"""Rule plan_artist: an artist's rows of the plan, apart."""

from job import job

with job(snakemake, parts=()):
    from lora_atlas import tables

    rows = tables.read(snakemake.input.plan, "plan").to_pylist()
    artist = snakemake.wildcards.artist
    tables.write(snakemake.output[0], "plan", [row for row in rows if row["artist"] == artist])
