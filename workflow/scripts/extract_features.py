"""Rules extract_features and extract_controls: vectors of training and of generated pictures."""

from job import job

with job(snakemake) as cost:
    from lora_atlas.features.extract import extract
    from lora_atlas.sections import Extractor

    p = snakemake.params
    sources = {"training": list(snakemake.input.training)}
    for setting in p.settings:
        sources[setting] = [path for path in snakemake.input.generated if path.endswith(f"/{setting}.parquet")]
    outputs = dict(zip(sources, snakemake.output.features, strict=True))
    cost.count = extract(Extractor(**p.extractor), sources, device=p.device, outputs=outputs, lock=p.lock)
