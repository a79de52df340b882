"""Rule mini_card: the mini models in one folder, with their card and what they generate."""

from job import job

with job(snakemake):
    from pathlib import Path

    from lora_atlas.mini.card import write_card

    given = snakemake.input
    write_card(
        given.corpus,
        {"autoencoder": given.autoencoder, "base": given.base, "clip": given.clip, "dino": given.dino},
        {Path(path).stem: path for path in given.logs},
        Path(snakemake.output[0]).parent,
        seed=snakemake.params.seed,
    )
