"""Rule ask_gradients: products of every picture's gradient with every LoRA."""

from job import asked, at_once, job

with job(snakemake) as cost:
    import pyarrow as pa

    from lora_atlas import tables
    from lora_atlas.attribution.measure import measure
    from lora_atlas.loras.listed import listed
    from lora_atlas.sections import Attribution, Base, Probe, Training

    p, given, out = asked(snakemake), snakemake.input, snakemake.output
    cost.count, cost.device = measure(
        tables.read(given.plan[0], "plan"),
        pa.concat_tables([tables.read(path, "pictures") for path in given.pictures]),
        listed(given.loras),
        Base(**snakemake.config["base"]),
        Attribution(**p.attribution, **at_once(snakemake)),
        Training(**p.training),
        Probe(**p.probe),
        device=snakemake.config["resources"]["device"],
        output=out.products,
        features=out.features,
    )
