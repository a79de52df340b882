"""Rule structure: how alike the geometries of any two descriptors are."""

from job import asked, job

with job(snakemake):
    from lora_atlas import tables
    from lora_atlas.metrics.structure import structure
    from lora_atlas.views import View

    p, given = asked(snakemake), snakemake.input
    embeddings = {
        descriptor: tables.read(path, "embeddings")
        for descriptor, path in zip(p.descriptors, given.embeddings, strict=True)
    }
    plan = tables.read(given.plan[0], "plan").select(["lora", "pictures"]).to_pylist()
    rows = structure(
        embeddings,
        {row["lora"]: len(row["pictures"]) for row in plan},
        scenario=View(**p.view).together,
        permutations=p.evaluation["permutations"],
        confidence=p.evaluation["confidence"],
        seed=p.seed,
    )
    tables.write(snakemake.output[0], "structure", rows)
