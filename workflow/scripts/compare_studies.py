"""Rule compare_studies: what held in which study."""

from job import job

with job(snakemake):
    from lora_atlas.findings.across import write

    write(snakemake.input.claims, snakemake.output[0])
