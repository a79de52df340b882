"""Rule find_duplicates: pictures that are nearly the same, of one artist or of two."""

from job import asked, job

with job(snakemake):
    from lora_atlas import tables
    from lora_atlas.pictures.duplicates import find

    threshold = asked(snakemake).threshold
    rows = find(snakemake.input.pictures, threshold)
    tables.write(snakemake.output[0], "duplicates", rows, {"threshold": threshold})
