"""Rule clustering: does each descriptor fall into artists, and into genres?"""

from job import asked, job

with job(snakemake):
    from lora_atlas import tables
    from lora_atlas.metrics.clustering import clusterings

    p = asked(snakemake)
    embeddings = {
        descriptor: tables.read(path, "embeddings")
        for descriptor, path in zip(p.descriptors, snakemake.input.embeddings, strict=True)
    }
    options = {key: p.evaluation[key] for key in ("confidence", "restarts", "permutations")}
    calibration = p.told["view"]["calibration"]
    rows, differences = clusterings(embeddings, p.told["kinds"], calibration=calibration, seed=p.seed, **options)
    tables.write(snakemake.output.clustering, "clustering", rows)
    tables.write(snakemake.output.differences, "differences", differences)
