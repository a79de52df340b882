"""Rule base_sensitivity: how much each layer of the frozen base matters, asked of the base alone."""

from job import job

with job(snakemake) as cost:
    from lora_atlas.diffusion.sensitivity import cached
    from lora_atlas.sections import Base, Probe

    p = snakemake.params
    cost.count, cost.device, cost.seconds = cached(
        snakemake.output.base,
        p.cache,
        Base(**p.base),
        p.targets,
        Probe(**p.probe),
        resolution=p.resolution,
        moments=p.moments,
        device=p.device,
    )
