"""Rule one_step: a LoRA of some pictures, without training."""

from job import job

with job(snakemake) as cost:
    from lora_atlas import origin
    from lora_atlas.attribution.make import make, told
    from lora_atlas.sections import Attribution, Base

    p, output = snakemake.params, snakemake.output[0]
    made = make(
        p.query,
        Base(**p.base),
        Attribution(**p.attribution),
        output,
        rank=p.training["rank"],
        targets=p.training["targets"],
        caption=p.caption,
        resolution=p.resolution,
        device=p.device,
    )
    origin.keep_asked(output, p.query)
    cost.say(told(made, output))
