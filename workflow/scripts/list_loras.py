"""Rule list_loras: what the files of all LoRAs hold."""

from job import job

with job(snakemake):
    from lora_atlas.loras.listed import write_list

    write_list(snakemake.output[0], snakemake.input)
