"""Rule collect_pictures: one artist's pictures from the source into a table."""

from job import job

with job(snakemake):
    from lora_atlas import tables
    from lora_atlas.pictures.sources import collect

    p = snakemake.params
    rows = collect(snakemake.wildcards.artist, p.genre, p.pictures, p.folder, p.seed)
    tables.write(snakemake.output[0], "pictures", rows)
