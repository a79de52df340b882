"""Rule write_findings: what held, in words, from the tables."""

from pathlib import Path

from job import asked, job

with job(snakemake):
    from lora_atlas import tables
    from lora_atlas.findings.page import write

    p, out = asked(snakemake), snakemake.output
    rows = write(
        out.page,
        Path(out.page).parent,
        study=p.study,
        replicates=p.replicates,
        variants=p.variants,
        evaluation=p.evaluation,
        about=p.about,
        seed=p.seed,
        given=snakemake.input,
    )
    told = {"study": p.study, "base": snakemake.config["base"]["model"], "replicates": list(p.replicates)}
    tables.write(out.claims, "claims", rows, told)
