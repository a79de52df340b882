"""Rule gram: inner products of all LoRAs."""

from job import job

with job(snakemake) as cost:
    from lora_atlas.weights.gram import gram, write_gram

    p = snakemake.params
    write_gram(snakemake.output.gram, p.ids, gram(snakemake.input.loras, p.kernel), p.kernel)
    cost.count = len(p.ids)
