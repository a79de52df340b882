"""Rule gram: inner products of all LoRAs."""

from job import asked, job

with job(snakemake) as cost:
    from lora_atlas.weights.engine import matrices, pick

    p, cache = asked(snakemake), snakemake.resources.cache
    matrices(
        snakemake.input.loras,
        p.ids,
        p.kernel,
        snakemake.output.gram,
        engine=pick(p.engine["engine"], p.kernel, len(p.ids), p.engine["exact_limit"]),
        cache=f"{cache}/{p.kernel}.safetensors",
        folder=f"{cache}/sketches",
        numbers=p.engine["sketch_numbers"],
    )
    cost.count = len(p.ids)
