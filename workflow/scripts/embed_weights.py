"""Rule embed_weights: every descriptor that reads the weights."""

from job import asked, job

with job(snakemake):
    from lora_atlas import tables
    from lora_atlas.descriptors import restored
    from lora_atlas.embeddings.describe import embed_weights
    from lora_atlas.sections import Embedding
    from lora_atlas.weights.metric import read_metric

    p, given = asked(snakemake), snakemake.input
    asked = list(restored(p.descriptors).values())
    embed_weights(
        dict(zip(p.weights["kernels"], given.grams, strict=True)),
        given.modules[0] if given.modules else None,
        read_metric(given.base[0]).weights if given.base else None,
        tables.read(given.plan, "plan"),
        asked,
        p.weights,
        Embedding(**p.embedding),
        seed=p.seed,
        outputs=dict(zip([each.name for each in asked], snakemake.output, strict=True)),
    )
