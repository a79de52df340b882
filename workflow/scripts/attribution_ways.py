"""Rule attribution_ways: how well pictures find LoRAs, asked in other ways."""

from job import asked, job

with job(snakemake):
    from lora_atlas import tables
    from lora_atlas.attribution.study import summed
    from lora_atlas.attribution.ways import ask

    given, out = snakemake.input, snakemake.output
    rows = ask(given.ways, given.modules, tables.read(given.plan[0], "plan"))
    tables.write(out.queries, "attribution_way_queries", rows)
    queries = tables.read(out.queries, "attribution_way_queries")
    tables.write(out.ways, "attribution_ways", summed(queries, confidence=asked(snakemake).confidence))
