"""Rule retrieval: does a query LoRA find the gallery LoRAs of its artist, and by how much better than by a control?"""

from job import asked, job

with job(snakemake):
    from lora_atlas import tables
    from lora_atlas.metrics import crowd, drift, margins, retrieval
    from lora_atlas.views import View

    p, out = asked(snakemake), snakemake.output
    confidence, view = p.evaluation["confidence"], View(**p.told["view"])
    found = {"retrieval": [], "queries": [], "drift": [], "crowd": []}
    described = {}
    for descriptor, path in zip(p.descriptors, snakemake.input.embeddings, strict=True):
        embeddings = described[descriptor] = tables.read(path, "embeddings")
        asked = list(retrieval.ask(embeddings, descriptor, seed=p.seed))
        found["retrieval"] += retrieval.rows(asked, descriptor, confidence=confidence)
        found["queries"] += retrieval.queries(asked, descriptor)
        found["crowd"] += crowd.crowd(embeddings, descriptor, view, confidence=confidence)
        found["drift"] += drift.drift(embeddings, descriptor, confidence=confidence)
    kinds = p.told["kinds"]
    queries = tables.table("queries", found["queries"])
    found["differences"] = margins.differences(queries, kinds, view, confidence=confidence)
    found["controls"] = margins.permuted(
        {descriptor: described[descriptor] for descriptor in kinds},
        view,
        permutations=p.evaluation["permutations"],
        confidence=confidence,
        seed=p.seed,
    )
    # What a reader of the tables needs to know of their descriptors and of the headline goes with them.
    for name, rows in found.items():
        tables.write(out[name], name, queries if name == "queries" else rows, p.told)
