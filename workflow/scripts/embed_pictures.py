"""Rule embed_pictures: every descriptor that reads pictures."""

from job import job

with job(snakemake):
    from lora_atlas import tables
    from lora_atlas.embeddings import embed_pictures

    p = snakemake.params
    embed_pictures(
        {tuple(path.removesuffix(".parquet").split("/")[-2:]): path for path in snakemake.input.features},
        tables.read(snakemake.input.plan, "plan"),
        p.extractors,
        p.settings,
        p.embedding,
        seed=p.seed,
        outputs=dict(zip(p.descriptors, snakemake.output, strict=True)),
    )
