"""Rule gram: inner products of all LoRAs."""

from job import job

with job(snakemake) as cost:
    from lora_atlas.weights.engine import matrices, pick

    p = snakemake.params
    matrices(
        snakemake.input.loras,
        p.ids,
        p.kernel,
        snakemake.output.gram,
        engine=pick(p.engine["engine"], p.kernel, len(p.ids), p.engine["exact_limit"]),
        cache=f"{p.cache}/{p.kernel}.safetensors",
        folder=f"{p.cache}/sketches",
        numbers=p.engine["sketch_numbers"],
    )
    cost.count = len(p.ids)
