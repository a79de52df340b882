"""Rules icon_card, flow_icon_card: a base of icons in one folder, with its card and what it generates."""

from job import job

with job(snakemake):
    from pathlib import Path

    from lora_atlas.mini.card import gather
    from lora_atlas.mini.corpus import load
    from lora_atlas.mini.icon_card import write_card
    from lora_atlas.mini.icons import studied

    p, given, folder = snakemake.params, snakemake.input, Path(snakemake.output[0]).parent
    options = {"source": Path(given.families).parent, "avoid": studied(p.studies), "seed": p.seed, "network": p.network}
    gather(given.base, folder / "base")
    write_card(load(given.corpus), given.used, given.base, given.log, folder, **options)
