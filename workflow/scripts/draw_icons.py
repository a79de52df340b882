"""Rule draw_icons: drawings of icon families that no study uses."""

from job import job

with job(snakemake):
    from pathlib import Path

    from lora_atlas.mini.corpus import save
    from lora_atlas.mini.icons import make, save_used, studied

    p = snakemake.params
    folder = Path(snakemake.input[0]).parent
    options = {"count": p.pictures, "size": p.size, "seed": p.seed, "workers": snakemake.threads}
    corpus, used = make(folder, studied(p.studies), **options)
    save(corpus, snakemake.output.corpus)
    save_used(used, snakemake.output.used)
