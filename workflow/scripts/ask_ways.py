"""Rule ask_ways: values of the LoRAs for pictures, asked in other ways too."""

from job import job

with job(snakemake) as cost:
    import pyarrow as pa

    from lora_atlas import tables
    from lora_atlas.attribution.ways import measure
    from lora_atlas.sections import Attribution, Base, Training, Ways

    p, given, out = snakemake.params, snakemake.input, snakemake.output
    cost.count, cost.device = measure(
        tables.read(given.plan[0], "plan"),
        pa.concat_tables([tables.read(path, "pictures") for path in given.pictures]),
        dict(zip(p.ids, given.loras, strict=True)),
        Base(**p.base),
        Attribution(**p.attribution),
        Ways(**p.ways),
        Training(**p.training),
        generated=p.settings,
        moments=given.moments[0] if given.moments else None,
        device=p.device,
        output=out.ways,
    )
