"""Rule draw_charts: the map of the weights, the comparison of descriptors, and what the evaluation found."""

from job import job

with job(snakemake):
    from lora_atlas import tables
    from lora_atlas.atlas import evaluation
    from lora_atlas.atlas.charts import comparison, save, thumbnail, weight_map

    p, given = snakemake.params, snakemake.input
    read = {
        name: tables.read(given[name], name) for name in ("retrieval", "clustering", "structure", "ablation", "drift")
    }
    painters = {
        artist: thumbnail(tables.read(path, "pictures")) for artist, path in zip(p.artists, given.pictures, strict=True)
    }
    charts = {
        "weight_map": weight_map(tables.read(given.embedding, "embeddings"), p.descriptor, painters, seed=p.seed),
        "comparison": comparison(read["retrieval"], read["clustering"]),
        "structure": evaluation.structure_matrix(read["structure"], p.kinds),
        "ablation": evaluation.ablation_chart(read["ablation"]),
        "drift": evaluation.drift_chart(read["drift"], p.descriptor),
    }
    if "worth" in p.charts:
        charts["worth"] = evaluation.worth_curve(tables.read(given.worth[0], "worth"), read["retrieval"])
    for name in p.charts:
        for path in snakemake.output[name]:
            save(charts[name], path)
