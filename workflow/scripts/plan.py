"""Rule plan: which pictures each LoRA is trained on."""

from job import job

with job(snakemake):
    from lora_atlas import study, tables

    p = snakemake.params
    kept, genres, shown = {}, {}, {}
    alike = set(tables.read(snakemake.input.duplicates, "duplicates")["picture"].to_pylist())
    for artist, path in zip(p.artists, snakemake.input.pictures, strict=True):
        found = tables.read(path, "pictures")
        kept[artist] = study.usable(found, alike)
        shown |= study.subjects([found])
        genres[artist] = found["genre"][0].as_py() if len(found) else None
    planned = study.plan(kept, genres, p.plan, p.seed, shown)
    tables.write(snakemake.output.plan, "plan", planned)
    for artist, path in zip(p.artists, snakemake.output.parts, strict=True):
        tables.write(path, "plan", [row for row in planned if row["artist"] == artist])
