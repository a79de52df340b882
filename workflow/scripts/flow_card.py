"""Rule flow_card: the mini transformer in one folder, with its card and what it generates beside the mini UNet."""

from job import job

with job(snakemake):
    import shutil
    from pathlib import Path

    from lora_atlas.mini.flow import write_card

    given, folder = snakemake.input, Path(snakemake.output[0]).parent
    shutil.copytree(given.base, folder / "base", ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True)
    write_card(given.base, given.other, given.log, folder, seed=snakemake.params.seed)
