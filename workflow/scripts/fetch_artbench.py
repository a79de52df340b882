"""Rule fetch_artbench: the metadata and the images of ArtBench-10, as its authors publish them."""

from job import job

with job(snakemake):
    from lora_atlas.pictures.archive import fetch

    p, out = snakemake.params, snakemake.output
    fetch(**p.pictures, contact=snakemake.resources.contact, metadata=out.metadata, images=out.images, lock=p.lock)
