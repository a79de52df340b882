"""Rule draw_charts: the map of the weights and the comparison of descriptors."""

from job import job

with job(snakemake):
    from lora_atlas import tables
    from lora_atlas.atlas.charts import comparison, save, thumbnail, weight_map

    p, given = snakemake.params, snakemake.input
    painters = {
        artist: thumbnail(tables.read(path, "pictures")) for artist, path in zip(p.artists, given.pictures, strict=True)
    }
    charts = {
        "map": weight_map(tables.read(given.embedding, "embeddings"), p.descriptor, painters, seed=p.seed),
        "comparison": comparison(
            tables.read(given.retrieval, "retrieval"), tables.read(given.clustering, "clustering")
        ),
    }
    for name, chart in charts.items():
        for path in snakemake.output[name]:
            save(chart, path)
