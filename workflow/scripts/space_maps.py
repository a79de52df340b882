"""Rule space_maps: the LoRAs of each space as a map, still and alive, and a page that leads to them."""

from job import job

with job(snakemake):
    from pathlib import Path

    from lora_atlas import tables
    from lora_atlas.atlas.charts import save
    from lora_atlas.atlas.collection import collection_map, index
    from lora_atlas.collection.spaces import MAPPED, MAPS, spaces

    given, p = snakemake.input, snakemake.params
    found = spaces(tables.read(given.table, "loras").to_pylist())
    for space, rows in found.items():
        folder = Path(p.folder, space)
        if len(rows) < MAPPED:
            for name in MAPS:  # of an earlier run, when there were more
                (folder / name).unlink(missing_ok=True)
            continue
        embedding = tables.read(folder / "embedding.parquet", "embeddings")
        neighbours = tables.read(folder / "neighbours.parquet", "neighbours")
        chart = collection_map(rows, embedding, neighbours, seed=p.seed)
        for name in MAPS:
            save(chart, folder / name)
    with tables.replacing(snakemake.output.index) as temporary:
        temporary.write_text(index(found), encoding="utf-8")
