"""Rule ask_ways: values of the LoRAs for pictures, asked in other ways too."""

from job import asked, at_once, job

with job(snakemake) as cost:
    import pyarrow as pa

    from lora_atlas import tables
    from lora_atlas.attribution.measure_ways import measure
    from lora_atlas.loras.listed import listed
    from lora_atlas.sections import Attribution, Base, Training, Ways

    p, given, out = asked(snakemake), snakemake.input, snakemake.output
    cost.count, cost.device = measure(
        tables.read(given.plan[0], "plan"),
        pa.concat_tables([tables.read(path, "pictures") for path in given.pictures]),
        listed(given.loras),
        Base(**snakemake.config["base"]),
        Attribution(**p.attribution, **at_once(snakemake)),
        Ways(**p.ways),
        Training(**p.training),
        generated={
            name: [path for path in given.generated if path.endswith(f"/{name}.parquet")] for name in p.settings
        },
        moments=given.moments[0] if given.moments else None,
        device=snakemake.config["resources"]["device"],
        output=out.ways,
    )
