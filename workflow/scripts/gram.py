"""Rule gram: inner products of all LoRAs."""

from job import asked, job

with job(snakemake) as cost:
    from lora_atlas.loras.listed import listed
    from lora_atlas.weights.engine import matrices, pick

    p, cache = asked(snakemake), snakemake.resources.cache
    loras = listed(snakemake.input.loras)
    matrices(
        list(loras.values()),
        list(loras),
        p.kernel,
        snakemake.output.gram,
        engine=pick(p.engine["engine"], p.kernel, len(loras), p.engine["exact_limit"]),
        cache=f"{cache}/{p.kernel}.safetensors",
        folder=f"{cache}/sketches",
        numbers=p.engine["sketch_numbers"],
    )
    cost.count = len(loras)
