"""Rule list_pictures: what a source on a network has, as a manifest to look at and to commit."""

from job import job

with job(snakemake):
    from lora_atlas.pictures.sources import manifest, source

    p = snakemake.params
    manifest.write(snakemake.output[0], source(p.pictures).list_pictures(p.pictures))
