"""Rule worth: how many generated pictures retrieve as well as the weights."""

from job import job

with job(snakemake):
    from lora_atlas import tables
    from lora_atlas.metrics import worth
    from lora_atlas.summary import seconds_per_lora, seconds_per_picture

    p, given, out = snakemake.params, snakemake.input, snakemake.output
    options = {"bootstrap": p.evaluation["bootstrap"], "level": p.evaluation["level"], "seed": p.seed}
    rows = worth.worth_queries(
        {name: tables.read(path, "features") for name, path in zip(p.descriptors, given.features, strict=True)},
        tables.read(given.plan[0], "plan"),
        p.embedding,
        draws=p.evaluation["draws"],
        seed=p.seed,
    )
    tables.write(out.queries, "worth_queries", rows)
    cost = tables.read(given.cost, "cost")
    queries, seconds = tables.read(out.queries, "worth_queries"), seconds_per_picture(cost, p.kinds)
    tables.write(out.worth, "worth", worth.curves(queries, seconds, **options))
    weights = {descriptor: kind for descriptor, kind in p.kinds.items() if kind == "weights"}
    crossings = worth.crossings(
        queries,
        worth.references(tables.read(given.queries, "queries"), weights, p.embedding["calibration"]),
        seconds,
        {name: value for name, value in seconds_per_lora(cost, p.kinds).items() if name in weights},
        **options,
    )
    tables.write(out.crossings, "crossings", crossings)
