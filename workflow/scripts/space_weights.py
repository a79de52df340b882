"""Rule space_weights: inner products of the LoRAs of each space."""

from job import job

with job(snakemake) as cost:
    from pathlib import Path

    from lora_atlas import tables
    from lora_atlas.collection.spaces import forget, spaces
    from lora_atlas.loras.folder import located
    from lora_atlas.weights.engine import collection, pick

    p = snakemake.params
    listed = located(snakemake.config["folder"], tables.read(snakemake.input.table, "loras").to_pylist())
    forget(p.folder, listed)
    found = spaces(listed)
    for space, rows in found.items():
        weights = Path(p.folder, space, "weights")
        collection(
            [row["file"] for row in rows],
            [row["lora"] for row in rows],
            weights / "delta.safetensors",
            weights / "weighted.safetensors",
            weighting=p.weighting,
            engine=pick(p.engine["engine"], "delta", len(rows), p.engine["exact_limit"]),
            cache=f"{p.cache}/{space}.safetensors",
            folder=f"{p.cache}/sketches",
            numbers=p.engine["sketch_numbers"],
            sha256=[row["sha256"] for row in rows],
            pickles=p.engine["pickles"] == "load",
            base=p.engine["base"],
            **p.weights,
        )
    cost.count = sum(map(len, found.values()))
