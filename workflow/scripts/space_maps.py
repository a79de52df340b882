"""Rule space_maps: the LoRAs of each space as a map, and the page of them all."""

from job import job

with job(snakemake):
    from pathlib import Path

    from lora_atlas import tables
    from lora_atlas.atlas import folder as page
    from lora_atlas.atlas.charts import save
    from lora_atlas.atlas.collection import collection_map, placed
    from lora_atlas.collection.spaces import MAPPED, MAPS, spaces
    from lora_atlas.loras.folder import located

    given, p = snakemake.input, snakemake.params
    rows = tables.read(given.table, "loras").to_pylist()
    where = {}
    for space, members in spaces(rows).items():
        folder = Path(p.folder, space)
        embedding = tables.read(folder / "embedding.parquet", "embeddings")
        neighbours = tables.read(folder / "neighbours.parquet", "neighbours")
        where[space] = placed(members, embedding, neighbours, seed=p.seed)
        for name in MAPS:
            if len(members) < MAPPED:  # of an earlier run, when there were more
                (folder / name).unlink(missing_ok=True)
            else:
                save(collection_map(members, where[space]), folder / name)
    # Previews lie beside the files.
    page.write(snakemake.output.page, p.study, located(snakemake.config["folder"], rows), where)
