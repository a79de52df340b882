"""Rule module_grams: inner products of all LoRAs, module by module."""

from job import asked, job

with job(snakemake) as cost:
    from lora_atlas.loras.listed import listed
    from lora_atlas.weights.metric import read_metric
    from lora_atlas.weights.modules import write_module_grams

    p, given = asked(snakemake), snakemake.input
    loras = listed(given.loras)
    metric = read_metric(given.base[0]) if given.base else None
    write_module_grams(snakemake.output.grams, list(loras), list(loras.values()), p.kernels, metric=metric)
    cost.count = len(loras)
