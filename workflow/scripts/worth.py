"""Rule worth: how many generated pictures retrieve as well as the weights."""

from job import asked, job

with job(snakemake):
    from lora_atlas import tables
    from lora_atlas.descriptors import of_weights, restored
    from lora_atlas.findings.cost import seconds_per_lora, seconds_per_picture
    from lora_atlas.metrics import worth
    from lora_atlas.sections import Embedding
    from lora_atlas.views import View

    p, given, out = asked(snakemake), snakemake.input, snakemake.output
    view, described = View(**p.told["view"]), restored(p.told["descriptors"])
    rows = worth.worth_queries(
        {name: tables.read(path, "features") for name, path in zip(p.descriptors, given.features, strict=True)},
        tables.read(given.plan[0], "plan"),
        Embedding(**p.embedding),
        view=view,
        draws=p.evaluation["draws"],
        seed=p.seed,
    )
    tables.write(out.queries, "worth_queries", rows)
    cost = tables.read(given.cost, "cost")
    queries, seconds = tables.read(out.queries, "worth_queries"), seconds_per_picture(cost, described)
    tables.write(out.worth, "worth", worth.curves(queries, seconds, confidence=p.evaluation["confidence"]), p.told)
    weights = of_weights(described)
    crossings = worth.crossings(
        queries,
        worth.references(tables.read(given.queries, "queries"), weights, view),
        seconds,
        {name: value for name, value in seconds_per_lora(cost, described).items() if name in weights},
        bootstrap=p.evaluation["bootstrap"],
        confidence=p.evaluation["confidence"],
        seed=p.seed,
    )
    tables.write(out.crossings, "crossings", crossings)
