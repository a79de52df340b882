"""Rule embed_weights: every descriptor that reads the weights."""

from job import job

with job(snakemake):
    from lora_atlas import tables
    from lora_atlas.embeddings import embed_weights

    p = snakemake.params
    embed_weights(
        dict(zip(p.weights["kernels"], snakemake.input.grams, strict=True)),
        tables.read(snakemake.input.plan, "plan"),
        p.weights,
        p.embedding,
        seed=p.seed,
        outputs=dict(zip(p.descriptors, snakemake.output, strict=True)),
    )
