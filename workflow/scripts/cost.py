"""Rule cost: the seconds of every costly job, in one table."""

from job import job

with job(snakemake):
    from lora_atlas import tables

    rows = [row for path in snakemake.input.cost for row in tables.read(path, "cost").to_pylist()]
    tables.write(snakemake.output[0], "cost", sorted(rows, key=lambda row: (row["stage"], row["item"])))
