"""Rule clustering: does each descriptor fall into artists, and into genres?"""

from job import job

with job(snakemake):
    from lora_atlas import tables
    from lora_atlas.metrics.clustering import clustering

    p = snakemake.params
    rows = []
    for descriptor, path in zip(p.descriptors, snakemake.input.embeddings, strict=True):
        rows += clustering(tables.read(path, "embeddings"), descriptor, seed=p.seed, **p.evaluation)
    tables.write(snakemake.output[0], "clustering", rows)
