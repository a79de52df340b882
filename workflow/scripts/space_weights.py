"""Rule space_weights: inner products of the LoRAs of one space."""

from job import job

with job(snakemake) as cost:
    from lora_atlas import tables
    from lora_atlas.weights.engine import matrices, pick, weighted

    p, space = snakemake.params, snakemake.wildcards.space
    rows = [row for row in tables.read(snakemake.input.table, "loras").to_pylist() if row["space"] == space]
    files, sha256 = [row["file"] for row in rows], [row["sha256"] for row in rows]
    opened = {"pickles": p.engine["pickles"] == "load", "base": p.engine["base"]}
    matrices(
        files,
        [row["lora"] for row in rows],
        "delta",
        snakemake.output.gram,
        engine=pick(p.engine["engine"], "delta", len(rows), p.engine["exact_limit"]),
        cache=f"{p.cache}/{space}.safetensors",
        folder=f"{p.cache}/sketches",
        numbers=p.engine["sketch_numbers"],
        sha256=sha256,
        **opened,
    )
    out = snakemake.output
    weighted(out.gram, files, out.weighted, weighting=p.weighting, sha256=sha256, **p.weights, **opened)
    cost.count = len(rows)
