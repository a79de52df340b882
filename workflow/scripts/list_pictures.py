"""Rule list_pictures: what a source on a network has, as a manifest to look at and to commit."""

from job import job

with job(snakemake):
    from lora_atlas.pictures.sources import manifest, source
    from lora_atlas.sections import Pictures

    p = snakemake.params
    pictures = Pictures(**p.pictures)
    manifest.write(snakemake.output[0], source(pictures).list_pictures(pictures))
