"""Rule train_loras: all LoRAs of the artists of one pack."""

from job import job

with job(snakemake) as cost:
    import pyarrow as pa

    from lora_atlas import tables
    from lora_atlas.diffusion.base import pick_device
    from lora_atlas.diffusion.train import Resources, train
    from lora_atlas.sections import Base, Training

    p, pack, r = snakemake.params, snakemake.output.pack, snakemake.resources
    plan = pa.concat_tables(tables.read(path, "plan") for path in snakemake.input.plans)
    train(
        plan,
        pa.concat_tables(tables.read(path, "pictures") for path in snakemake.input.pictures),
        Base(**p.base),
        Training(**p.training),
        seed=p.seed,
        resources=Resources(
            p.device,
            r.loras_per_pack,
            r.checkpoint_every,
            r.time_budget or None,
            bool(r.gradient_checkpointing),
            bool(r.compile),
        ),
        outputs={lora: f"{pack}/{lora}.safetensors" for lora in plan["lora"].to_pylist()},
        logs={artist: f"{pack}/{artist}/log.parquet" for artist in plan["artist"].to_pylist()},
        folder=p.state,
    )
    cost.count, cost.device = len(plan), pick_device(p.device)
