"""Rule space_neighbours: of each LoRA the nearest others of its space, and a vector."""

from job import job

with job(snakemake):
    from pathlib import Path

    from lora_atlas import tables
    from lora_atlas.collection.known import Known, read_weighted
    from lora_atlas.collection.query import neighbours
    from lora_atlas.collection.spaces import spaces
    from lora_atlas.embeddings.describe import embed_collection
    from lora_atlas.weights.gram import read_gram

    p, every = snakemake.params, []
    for space, rows in spaces(tables.read(snakemake.input.table, "loras").to_pylist()).items():
        folder = Path(p.folder, space)
        ids, grams = read_gram(folder / "weights/delta.safetensors", "delta")
        weighted, modules = read_weighted(folder / "weights/weighted.safetensors", ids)
        artists, genres = [row["artist"] for row in rows], [row["genre"] for row in rows]
        known = Known(space, ids, [], artists, genres, grams, weighted=weighted, modules=modules)
        found = neighbours(known, **p.weights)
        tables.write(folder / "neighbours.parquet", "neighbours", found)
        embed_collection(rows, known.nearness, folder / "embedding.parquet", **p.weights)
        every += found
    tables.write(snakemake.output.neighbours, "neighbours", every)
