"""Pictures: from the study's source into one table an artist.

Needs: nothing (source synthetic), or the folder named by `folder` (source folder).
Makes: results/{study}/pictures/{artist}.parquet
"""


rule pictures:
    input:
        rules_of("pictures"),
    localrule: True


# One artist, so that a new one costs only itself. A picture that cannot be used is a row with a reason.
rule collect_pictures:
    input:
        code=code("pictures.sources", "pictures.synthetic", "pictures.decode", "tables"),
    output:
        "results/{study}/pictures/{artist}.parquet",
    log:
        "results/{study}/logs/pictures/{artist}.log",
    localrule: True
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        genre=lambda wildcards: ARTISTS[wildcards.artist],
        pictures=lambda wildcards: {**config["pictures"], "artists": None},
        folder=config["folder"],
        pictures_found=lambda wildcards: picture_sources.count(config["pictures"], config["folder"])[wildcards.artist],
        seed=config["seed"],
    script:
        "../scripts/collect_pictures.py"
