"""Rule base_sensitivity: how much each layer of the frozen base matters, asked of the base alone."""

from job import job

with job(snakemake) as cost:
    from lora_atlas.diffusion.sensitivity import cached

    p = snakemake.params
    cost.count, cost.device, cost.seconds = cached(
        snakemake.output.base,
        p.cache,
        p.base,
        p.targets,
        p.probe,
        resolution=p.resolution,
        moments=p.moments,
        device=p.device,
    )
