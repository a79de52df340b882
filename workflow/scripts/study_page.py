"""Rule study_page: the page of a trained study."""

from job import asked, job

with job(snakemake):
    from lora_atlas.atlas.trained import Told, write
    from lora_atlas.sections import Pictures

    p, given = asked(snakemake), snakemake.input
    files = {name: given[name] for name in ("plan", *p.tables)}
    if given.delta:
        files["delta"] = given.delta[0]
    section = Pictures(**p.pictures) | {"manifest": snakemake.config["pictures"]["manifest"]}
    write(
        snakemake.output[0],
        Told(p.study, p.facts, p.links, p.setting),
        files,
        pictures=given.pictures,
        generated=given.generated,
        embeddings=dict(zip(p.descriptors, given.embeddings, strict=True)),
        section=section,
        seed=p.seed,
    )
