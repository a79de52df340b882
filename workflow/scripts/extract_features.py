"""Rules extract_features and extract_controls: vectors of training and of generated pictures."""

from pathlib import Path

from job import asked, job

with job(snakemake, parts=["settings"]) as cost:
    from lora_atlas.features.extract import extract
    from lora_atlas.sections import Extractor

    p, config = asked(snakemake), snakemake.config
    sources = {"training": list(snakemake.input.training)}
    for setting in p.settings:
        sources[setting] = [path for path in snakemake.input.generated if path.endswith(f"/{setting}.parquet")]
    control = p.extractor["library"] == "control"
    cost.count = extract(
        Extractor(**config["extractors"][snakemake.wildcards.extractor]),
        sources,
        device="cpu" if control else config["resources"]["device"],
        outputs={Path(path).stem: path for path in snakemake.output.features},
        lock=config["lock"],
        kept=cost.kept,
    )
