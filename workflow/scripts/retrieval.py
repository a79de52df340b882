"""Rule retrieval: does a query LoRA find the gallery LoRAs of its artist?"""

from job import job

with job(snakemake):
    from lora_atlas import tables
    from lora_atlas.metrics.retrieval import retrieval

    p = snakemake.params
    rows = []
    for descriptor, path in zip(p.descriptors, snakemake.input.embeddings, strict=True):
        rows += retrieval(
            tables.read(path, "embeddings"),
            descriptor,
            bootstrap=p.evaluation["bootstrap"],
            level=p.evaluation["level"],
            seed=p.seed,
        )
    # What a reader of the table needs to know of its descriptors, and which calibration is the study's own.
    tables.write(snakemake.output[0], "retrieval", rows, {"kinds": p.kinds, "calibration": p.calibration})
