"""Rule embed_pictures: every descriptor that reads pictures."""

from job import job

with job(snakemake):
    from lora_atlas import tables
    from lora_atlas.descriptors import restored
    from lora_atlas.embeddings.describe import embed_pictures

    p, given = snakemake.params, snakemake.input
    asked = list(restored(p.descriptors).values())
    embed_pictures(
        {tuple(path.removesuffix(".parquet").split("/")[-2:]): path for path in given.features},
        tables.read(given.plan, "plan"),
        asked,
        p.extractors,
        p.embedding,
        seed=p.seed,
        outputs=dict(zip([each.name for each in asked], snakemake.output, strict=True)),
    )
