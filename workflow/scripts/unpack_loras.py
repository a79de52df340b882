"""Rule unpack_loras: an artist's LoRAs into the artist's folder."""

from pathlib import Path

from job import job

with job(snakemake, parts=()):
    from lora_atlas.store import place

    for path in snakemake.output:
        place(Path(snakemake.input[0], snakemake.wildcards.artist, Path(path).name), path)
