"""Rule list_loras: what the files of all LoRAs hold."""

from job import asked, job

with job(snakemake):
    from lora_atlas.loras.listed import write_list

    write_list(snakemake.output[0], dict(zip(asked(snakemake).ids, snakemake.input, strict=True)))
