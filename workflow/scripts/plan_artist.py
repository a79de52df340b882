"""Rule plan_artist: an artist's rows of the plan, apart."""

from job import asked, job

with job(snakemake, parts=()):
    from lora_atlas import study, tables

    p, given, artist = asked(snakemake), snakemake.input, snakemake.wildcards.artist
    if given.plan:
        rows = [row for row in tables.read(given.plan, "plan").to_pylist() if row["artist"] == artist]
    else:
        pictures = tables.read(given.pictures, "pictures")
        alike = {each for path in given.duplicates for each in tables.read(path, "duplicates")["picture"].to_pylist()}
        genre = pictures["genre"][0].as_py() if len(pictures) else None
        rows = study.plan({artist: study.usable(pictures, alike)}, {artist: genre}, p.plan, p.seed)
    tables.write(snakemake.output[0], "plan", rows)
