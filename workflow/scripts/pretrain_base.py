"""Rule pretrain_base: a mini text-to-image model, by a UNet (mini/base.py) or by a transformer (mini/flow.py)."""

from job import job

with job(snakemake):
    from lora_atlas.mini import base, flow

    p, given, made = snakemake.params, snakemake.input, snakemake.output
    build = {"base": base, "flow": flow}[p.network].build
    build(given.corpus, given.autoencoder, made.model, made.log, steps=p.steps, seed=p.seed, state=p.state)
