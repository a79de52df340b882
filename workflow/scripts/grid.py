"""Rule grid: every descriptor under every setting that any descriptor is given."""

from job import job

with job(snakemake):
    from lora_atlas import tables
    from lora_atlas.embeddings import inner_products
    from lora_atlas.metrics.grid import grid

    p, given = snakemake.params, snakemake.input
    plan = tables.read(given.plan[0], "plan")
    rows = grid(
        inner_products(
            dict(zip(p.weights["kernels"], given.grams, strict=True)),
            {tuple(path.removesuffix(".parquet").split("/")[-2:]): path for path in given.features},
            plan,
            p.weights,
            p.extractors,
            p.settings,
        ),
        plan,
        p.embedding,
        bootstrap=p.evaluation["bootstrap"],
        level=p.evaluation["level"],
        seed=p.seed,
    )
    tables.write(snakemake.output[0], "grid", rows)
