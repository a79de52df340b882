"""Rule write_findings: what held, in words, from the tables."""

from pathlib import Path

from job import asked, job

with job(snakemake):
    from lora_atlas.findings.page import write

    p = asked(snakemake)
    write(
        snakemake.output[0],
        Path(snakemake.output[0]).parent,
        study=p.study,
        replicates=p.replicates,
        variants=p.variants,
        evaluation=p.evaluation,
        about=p.about,
        seed=p.seed,
    )
