"""Rule plan: which pictures each LoRA is trained on."""

from job import asked, job

with job(snakemake):
    from lora_atlas import study, tables

    p = asked(snakemake)
    kept, genres, shown = {}, {}, {}
    alike = set(tables.read(snakemake.input.duplicates, "duplicates")["picture"].to_pylist())
    for artist, path in zip(p.artists, snakemake.input.pictures, strict=True):
        found = tables.read(path, "pictures")
        kept[artist] = study.usable(found, alike)
        shown |= study.subjects([found])
        genres[artist] = found["genre"][0].as_py() if len(found) else None
    planned = study.plan(kept, genres, p.plan, p.seed, shown)
    tables.write(snakemake.output[0], "plan", planned)
