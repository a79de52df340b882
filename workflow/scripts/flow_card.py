"""Rule flow_card: the mini transformer in one folder, with its card and what it generates beside the mini UNet."""

from job import job

with job(snakemake):
    from pathlib import Path

    from lora_atlas.mini.card import gather
    from lora_atlas.mini.flow import write_card

    given, folder = snakemake.input, Path(snakemake.output[0]).parent
    gather(given.base, folder / "base")
    write_card(given.base, given.other, given.log, folder, seed=snakemake.params.seed)
