"""Rule train_loras: all LoRAs of one artist."""

from job import job

with job(snakemake) as cost:
    from lora_atlas import tables
    from lora_atlas.diffusion.base import pick_device
    from lora_atlas.diffusion.train import train

    p, plan = snakemake.params, tables.read(snakemake.input.plan, "plan")
    train(
        plan,
        tables.read(snakemake.input.pictures, "pictures"),
        p.base,
        p.training,
        seed=p.seed,
        device=p.device,
        outputs=dict(zip(plan["lora"].to_pylist(), snakemake.output.loras, strict=True)),
        log=snakemake.output.log,
        state=p.state,
    )
    cost.count, cost.device = len(plan), pick_device(p.device)
