"""Rule show_pictures: a page of what was kept and refused, and why."""

from job import asked, job

with job(snakemake):
    from lora_atlas.pictures.page import write
    from lora_atlas.sections import Pictures

    p, given = asked(snakemake), snakemake.input
    pictures = Pictures(**p.pictures) | {"manifest": snakemake.config["pictures"]["manifest"]}
    write(snakemake.output[0], p.study, given.pictures, given.duplicates, p.plan, pictures)
