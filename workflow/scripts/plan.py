"""Rule plan: which pictures each LoRA is trained on."""

from job import job

with job(snakemake):
    from lora_atlas import study, tables

    p = snakemake.params
    kept, genres = {}, {}
    alike = set(tables.read(snakemake.input.duplicates, "duplicates")["picture"].to_pylist())
    for artist, path in zip(p.artists, snakemake.input.pictures, strict=True):
        rows = tables.read(path, "pictures").select(["picture", "genre", "status"]).to_pylist()
        kept[artist] = [row["picture"] for row in rows if row["status"] == "kept" and row["picture"] not in alike]
        genres[artist] = rows[0]["genre"] if rows else None
    planned = study.plan(kept, genres, p.plan, p.seed)
    tables.write(snakemake.output.plan, "plan", planned)
    for artist, path in zip(p.artists, snakemake.output.parts, strict=True):
        tables.write(path, "plan", [row for row in planned if row["artist"] == artist])
