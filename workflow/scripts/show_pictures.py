"""Rule show_pictures: a page of what was kept and refused, and why."""

from job import job

with job(snakemake):
    from lora_atlas.pictures.page import write
    from lora_atlas.sections import Pictures

    p, given = snakemake.params, snakemake.input
    write(snakemake.output[0], p.study, given.pictures, given.duplicates, p.plan, Pictures(**p.pictures))
