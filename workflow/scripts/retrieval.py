"""Rule retrieval: does a query LoRA find the gallery LoRAs of its artist, and by how much better than by a control?"""

from job import job

with job(snakemake):
    from lora_atlas import tables
    from lora_atlas.metrics import drift, margins, retrieval

    p, out = snakemake.params, snakemake.output
    options = {"bootstrap": p.evaluation["bootstrap"], "level": p.evaluation["level"], "seed": p.seed}
    found = {"retrieval": [], "queries": [], "drift": []}
    described = {}
    for descriptor, path in zip(p.descriptors, snakemake.input.embeddings, strict=True):
        embeddings = described[descriptor] = tables.read(path, "embeddings")
        asked = list(retrieval.ask(embeddings, descriptor, seed=p.seed))
        found["retrieval"] += retrieval.rows(asked, descriptor, **options)
        found["queries"] += retrieval.queries(asked, descriptor, p.calibration)
        found["drift"] += drift.drift(embeddings, descriptor, **options)
    # What a reader of the table needs to know of its descriptors, and which calibration is the study's own.
    told = {"kinds": p.kinds, "calibration": p.calibration}
    tables.write(out.retrieval, "retrieval", found["retrieval"], told)
    tables.write(out.queries, "queries", found["queries"], told)
    tables.write(out.drift, "drift", found["drift"], told)
    tables.write(
        out.differences,
        "differences",
        margins.differences(tables.read(out.queries, "queries"), p.kinds, **options),
        told,
    )
    tables.write(
        out.controls,
        "controls",
        margins.permuted(
            {descriptor: described[descriptor] for descriptor in p.kinds},
            p.calibration,
            permutations=p.evaluation["permutations"],
            level=p.evaluation["level"],
            seed=p.seed,
        ),
        told,
    )
