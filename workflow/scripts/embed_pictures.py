"""Rule embed_pictures: every descriptor that reads pictures."""

from job import asked, job

with job(snakemake):
    from lora_atlas import tables
    from lora_atlas.descriptors import restored
    from lora_atlas.embeddings.describe import embed_pictures
    from lora_atlas.sections import Embedding, Extractor

    p, given = asked(snakemake), snakemake.input
    asked = list(restored(p.descriptors).values())
    embed_pictures(
        {tuple(path.removesuffix(".parquet").split("/")[-2:]): path for path in given.features},
        tables.read(given.plan, "plan"),
        asked,
        {name: Extractor(library, name) for name, library in p.libraries.items()},
        Embedding(**p.embedding),
        seed=p.seed,
        outputs=dict(zip([each.name for each in asked], snakemake.output, strict=True)),
    )
