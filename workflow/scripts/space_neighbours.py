"""Rule space_neighbours: of each LoRA of one space the nearest others, and a vector."""

from job import job

with job(snakemake):
    from lora_atlas import tables
    from lora_atlas.collection.known import Known, read_weighted
    from lora_atlas.collection.query import neighbours
    from lora_atlas.embeddings.describe import embed_collection
    from lora_atlas.weights.gram import read_gram

    p, space = snakemake.params, snakemake.wildcards.space
    rows = [row for row in tables.read(snakemake.input.table, "loras").to_pylist() if row["space"] == space]
    ids, grams = read_gram(snakemake.input.gram, "delta")
    artists, genres = [row["artist"] for row in rows], [row["genre"] for row in rows]
    weighted, modules = read_weighted(snakemake.input.weighted, ids)
    known = Known(space, ids, [], artists, genres, grams, weighted=weighted, modules=modules)
    tables.write(snakemake.output.neighbours, "neighbours", neighbours(known, **p.weights))
    embed_collection(rows, known.nearness, snakemake.output.embedding, **p.weights)
