"""Rule write_findings: what held, in words, from the tables."""

from job import job

with job(snakemake):
    from lora_atlas.findings.page import write

    p = snakemake.params
    write(
        snakemake.output[0],
        p.folder,
        study=p.study,
        replicates=p.replicates,
        variants=p.variants,
        evaluation=p.evaluation,
        seed=p.seed,
    )
