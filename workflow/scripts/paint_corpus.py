"""Rule paint_corpus: the pictures that the mini models learn from."""

from job import job

with job(snakemake):
    from lora_atlas.mini.corpus import make, save

    p = snakemake.params
    save(make(p.pictures, p.size, p.seed, snakemake.threads), snakemake.output[0])
