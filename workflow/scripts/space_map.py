"""Rule space_map: the LoRAs of one space as a map, still and alive."""

from job import job

with job(snakemake):
    from lora_atlas import tables
    from lora_atlas.atlas.charts import save
    from lora_atlas.atlas.collection import collection_map

    given, space = snakemake.input, snakemake.wildcards.space
    rows = [row for row in tables.read(given.table, "loras").to_pylist() if row["space"] == space]
    chart = collection_map(
        rows,
        tables.read(given.embedding, "embeddings"),
        tables.read(given.neighbours, "neighbours"),
        seed=snakemake.params.seed,
    )
    for path in snakemake.output:
        save(chart, path)
