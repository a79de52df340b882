"""Rule module_grams: inner products of all LoRAs, module by module."""

from job import job

with job(snakemake):
    from lora_atlas.weights.modules import module_grams, write_modules

    p = snakemake.params
    write_modules(snakemake.output[0], p.ids, *module_grams(snakemake.input.loras, p.kernels))
