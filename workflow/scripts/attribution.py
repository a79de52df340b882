"""Rule attribution: do pictures find their artist's LoRAs by one gradient?"""

from job import asked, job

with job(snakemake):
    from lora_atlas import tables
    from lora_atlas.attribution.study import ask, summed
    from lora_atlas.weights.metric import read_metric

    p, given, out = asked(snakemake), snakemake.input, snakemake.output
    base = read_metric(given.base[0]).weights if given.base else None
    rows = ask(given.products, given.modules, tables.read(given.plan[0], "plan"), base=base, seed=p.seed)
    tables.write(out.queries, "attribution_queries", rows)
    queries = tables.read(out.queries, "attribution_queries")
    tables.write(out.attribution, "attribution", summed(queries, confidence=p.confidence))
