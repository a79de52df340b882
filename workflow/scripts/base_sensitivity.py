"""Rule base_sensitivity: how much each layer of the frozen base matters, asked of the base alone."""

from job import asked, began, forced, job

with job(snakemake) as cost:
    from lora_atlas.diffusion.sensitivity import cached
    from lora_atlas.sections import Base, Probe

    p = asked(snakemake)
    cost.count, cost.device, cost.seconds = cached(
        snakemake.output.base,
        "results/bases",
        Base(**snakemake.config["base"]),
        p.targets,
        Probe(**p.probe),
        resolution=p.resolution,
        moments=p.moments,
        device=snakemake.config["resources"]["device"],
        asked=snakemake.params.asked,
        since=began() if forced(snakemake) else 0.0,
    )
