"""Rule attribute: the known LoRAs that pictures speak for."""

from job import job

with job(snakemake) as cost:
    from pathlib import Path

    from lora_atlas import origin, tables
    from lora_atlas.attribution.find import find, told
    from lora_atlas.collection.known import collections
    from lora_atlas.sections import Attribution, Base, Probe

    p = snakemake.params
    options = {"pickles": p.options["pickles"] == "load", "base": p.options["base"]}
    rows = find(
        p.query,
        collections(Path(snakemake.output[0]).parents[1], folder=snakemake.config["folder"], **options),
        Base(**p.base),
        Attribution(**p.attribution),
        Probe(**p.probe),
        caption=p.caption,
        resolution=p.resolution,
        cache=p.cache,
        device=p.device,
    )
    origin.keep_asked(snakemake.output[0], p.query)
    tables.write(snakemake.output[0], "attributions", rows)
    cost.say(told(rows))
