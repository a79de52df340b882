"""Rules cache_list and cache_prune: what is kept of earlier jobs; and away with what nobody uses."""

from pathlib import Path

from job import job

with job(snakemake) as cost:
    from lora_atlas.store import Store, outdated, summary, used

    p, store = snakemake.params, Store(snakemake.config["cache"])
    folders = [p.current, *(str(Path(folder, "cache", Path(p.current).name)) for folder in Path("results").glob("*"))]
    old = outdated(Path("results"), {Path(folder) for folder in folders})
    if p.days is None:
        cost.say(summary(store, old))
    else:
        cost.say(store.told_of_pruning(p.days, used(Path("results")), old))
