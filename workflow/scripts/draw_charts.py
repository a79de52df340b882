"""Rule draw_charts: the map of the weights, the comparison of descriptors, and what the evaluation found."""

from job import asked, job

with job(snakemake):
    from lora_atlas import tables
    from lora_atlas.atlas import evaluation
    from lora_atlas.atlas.charts import comparison, save, thumbnail, weight_map
    from lora_atlas.attribution.study import prominences
    from lora_atlas.descriptors import restored
    from lora_atlas.views import View

    p, given = asked(snakemake), snakemake.input
    read = {
        name: tables.read(given[name], name) for name in ("retrieval", "clustering", "structure", "ablation", "drift")
    }
    painters = {
        artist: thumbnail(tables.read(path, "pictures")) for artist, path in zip(p.artists, given.pictures, strict=True)
    }
    described, view = restored(p.told["descriptors"]), View(**p.told["view"])
    headline = described[p.descriptor]
    asked = None
    if given.products:
        asked = prominences(given.products[0], given.modules[0], tables.read(given.plan[0], "plan"))
    embeddings = tables.read(given.embedding[0], "embeddings")
    charts = {
        "weight_map": weight_map(embeddings, headline, view, painters, asked=asked, seed=p.seed),
        "comparison": comparison(read["retrieval"], read["clustering"]),
        "structure": evaluation.structure_matrix(read["structure"], described),
        "ablation": evaluation.ablation_chart(read["ablation"]),
        "drift": evaluation.drift_chart(read["drift"], headline),
    }
    if "worth" in p.charts:
        charts["worth"] = evaluation.worth_curve(tables.read(given.worth[0], "worth"), read["retrieval"])
    for name in p.charts:
        for path in snakemake.output[name]:
            save(charts[name], path)
