"""Rule estimate: what the study will cost, printed and written."""

import os

from job import job

terminal = os.dup(1)  # the job's own output goes to its log

with job(snakemake):
    from lora_atlas.estimate import write

    p = snakemake.params
    said = write(p.config, snakemake.input.rates, p.output)
    os.write(terminal, f"\n{said}\n".encode())
