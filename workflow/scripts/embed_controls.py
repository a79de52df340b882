"""Rule embed_controls: what LoRAs are without direction."""

from job import asked, job

with job(snakemake):
    from lora_atlas import tables
    from lora_atlas.embeddings.describe import embed_controls
    from lora_atlas.loras.listed import listed
    from lora_atlas.sections import Embedding
    from lora_atlas.study import subjects
    from lora_atlas.weights.spectrum import spectra

    p = asked(snakemake)
    _, values = spectra(list(listed(snakemake.input.loras).values()))
    embed_controls(
        values,
        tables.read(snakemake.input.plan, "plan"),
        p.controls,
        Embedding(**p.embedding),
        shown=subjects(tables.read(path, "pictures") for path in snakemake.input.pictures),
        seed=p.seed,
        outputs=dict(zip(p.controls, snakemake.output, strict=True)),
    )
