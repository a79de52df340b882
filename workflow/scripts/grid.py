"""Rule grid: every descriptor under every setting that any descriptor is given."""

from job import asked, job

with job(snakemake):
    from lora_atlas import tables
    from lora_atlas.descriptors import restored
    from lora_atlas.embeddings.describe import inner_products
    from lora_atlas.metrics.grid import grid
    from lora_atlas.sections import Embedding, Extractor
    from lora_atlas.views import View
    from lora_atlas.weights.metric import read_metric

    p, given = asked(snakemake), snakemake.input
    plan = tables.read(given.plan, "plan")
    products = inner_products(
        dict(zip(p.weights["kernels"], given.grams, strict=True)),
        given.modules[0] if given.modules else None,
        read_metric(given.base[0]).weights if given.base else None,
        {tuple(path.removesuffix(".parquet").split("/")[-2:]): path for path in given.features},
        plan,
        list(restored(p.descriptors).values()),
        weights=p.weights,
        extractors={name: Extractor(library, name) for name, library in p.libraries.items()},
    )
    rows = grid(
        products,
        plan,
        Embedding(**p.embedding),
        view=View(**p.view),
        confidence=p.evaluation["confidence"],
        seed=p.seed,
    )
    tables.write(snakemake.output[0], "grid", rows)
