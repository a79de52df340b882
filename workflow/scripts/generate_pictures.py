"""Rule generate_pictures: what the LoRAs of one pack generate."""

from job import job

with job(snakemake) as cost:
    from lora_atlas.diffusion.base import pick_device
    from lora_atlas.diffusion.generate import generate
    from lora_atlas.sections import Base
    from lora_atlas.settings import settings

    p = snakemake.params
    cost.count = generate(
        {"/".join(path.removesuffix(".safetensors").split("/")[-2:]): path for path in snakemake.input.loras},
        Base(**p.base),
        settings(p.generation),
        batch=p.generation["batch"],
        resolution=p.resolution,
        seed=p.seed,
        device=p.device,
        outputs=dict(zip(p.settings, snakemake.output.generated, strict=True)),
    )
    cost.device = pick_device(p.device)
