"""Rule export_kohya: an artist's LoRAs under kohya's names."""

from job import job

with job(snakemake):
    from lora_atlas.diffusion.kohya import export

    for source, output in zip(snakemake.input.loras, snakemake.output, strict=True):
        export(source, output)
