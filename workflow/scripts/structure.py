"""Rule structure: how alike the geometries of any two descriptors are."""

from job import job

with job(snakemake):
    from lora_atlas import tables
    from lora_atlas.metrics.structure import structure

    p = snakemake.params
    embeddings = {
        descriptor: tables.read(path, "embeddings")
        for descriptor, path in zip(p.descriptors, snakemake.input.embeddings, strict=True)
    }
    rows = structure(embeddings, permutations=p.evaluation["permutations"], level=p.evaluation["level"], seed=p.seed)
    tables.write(snakemake.output[0], "structure", rows)
