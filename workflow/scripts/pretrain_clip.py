"""Rule pretrain_clip: one of the mini models."""

from job import job

with job(snakemake):
    from lora_atlas.mini.clip import build

    p, made = snakemake.params, snakemake.output
    build(snakemake.input.corpus, made.model, made.log, steps=p.steps, seed=p.seed, state=p.state)
