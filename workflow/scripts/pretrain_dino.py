"""Rule pretrain_dino: one of the mini models."""

from job import job

with job(snakemake):
    from lora_atlas.mini.dino import build

    p, made = snakemake.params, snakemake.output
    build(snakemake.input.corpus, made.model, made.log, steps=p.steps, seed=p.seed, state=p.state)
