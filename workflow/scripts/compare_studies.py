"""Rule compare_studies: what held in which study, and the same LoRAs on two bases."""

from job import job

with job(snakemake):
    from lora_atlas import tables
    from lora_atlas.findings.across import write

    p, out = snakemake.params, snakemake.output
    rows = write(p.claims, out.page, permutations=p.permutations, confidence=p.confidence, seed=p.seed)
    tables.write(out.bases, "bases", rows)
