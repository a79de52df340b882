"""Rule module_weights: how much each module counts, by each weighting."""

from job import asked, job

with job(snakemake):
    from lora_atlas import tables
    from lora_atlas.weights.metric import read_metric
    from lora_atlas.weights.modules import read_modules
    from lora_atlas.weights.weighting import listed

    p, given = asked(snakemake), snakemake.input
    ids, grams, _ = read_modules(given.all)
    rows = listed(
        grams,
        tables.read(given.plan, "plan"),
        p.kernels,
        p.weightings,
        base=read_metric(given.base[0]).weights if given.base else None,
    )
    tables.write(snakemake.output[0], "module_weights", rows)
