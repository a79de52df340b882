"""Rule pretrain_base: the mini text-to-image model."""

from job import job

with job(snakemake):
    from lora_atlas.mini.base import build

    p, given, made = snakemake.params, snakemake.input, snakemake.output
    build(given.corpus, given.autoencoder, made.model, made.log, steps=p.steps, seed=p.seed, state=p.state)
