"""Pictures: from the study's source into one table an artist; near-duplicates; a page that shows what was kept and why.

Needs: nothing (source synthetic), the folder named by `folder` (folder, artbench), a manifest (manifest), or a network
       (huggingface, commons, manifest): then pictures.contact too
Makes: results/{study}/pictures/{artist}.parquet, results/{study}/pictures/index.html, results/{study}/duplicates.parquet;
       of a network also the store, and the file that pictures.manifest names
"""

if LISTED:

    rule list_pictures:
        """Ask a source on a network what pictures it has."""
        input:
            contact=introduced_to_list,
            code=code("pictures.sources"),
        output:
            update(config["pictures"]["manifest"]),
        log:
            f"{RESULTS}/logs/manifest.log",
        localrule: True
        conda:
            "../../envs/lora-atlas.yaml"
        params:
            pictures=config["pictures"],
        script:
            "../scripts/list_pictures.py"


if config["pictures"]["archive"]:

    rule fetch_artbench:
        """Download ArtBench-10 and check it against the lock."""
        input:
            contact=introduced_to_list,
            code=code("pictures.archive"),
        output:
            metadata=config["pictures"]["manifest"],
            images=directory(config["folder"]),
        log:
            f"{RESULTS}/logs/artbench.log",
        localrule: True
        conda:
            "../../envs/lora-atlas.yaml"
        # Who asks changes nothing that is fetched.
        resources:
            contact=config["pictures"]["contact"] or "",
        params:
            pictures={key: config["pictures"][key] for key in ("archive", "store", "private_network")},
            lock=config["lock"],
        script:
            "../scripts/fetch_artbench.py"


# One artist, so that a new one costs only itself. A picture that cannot be used is a row with a reason.
# What lies on a network is fetched by the first of these jobs for all of them, into the store; the others wait for it.
rule collect_pictures:
    """Read, check and scale an artist's pictures."""
    input:
        needed=PICTURES_NEED,
        contact=introduced,
        code=code("pictures.sources", "pictures.synthetic", "pictures.decode", "tables"),
    output:
        f"{RESULTS}/pictures/{{artist}}.parquet",
    log:
        f"{RESULTS}/logs/pictures/{{artist}}.log",
    localrule: True
    conda:
        "../../envs/lora-atlas.yaml"
    # Who asks, and for whom, changes no picture: these are no reason to collect them again.
    resources:
        contact=config["pictures"]["contact"] or "",
        artists=json.dumps(config["pictures"]["artists"]),
        plan=json.dumps({side: max(config["plan"][side]) for side in ("gallery", "query")}),
    params:
        genre=lambda wildcards: ARTISTS[wildcards.artist],
        pictures=lambda wildcards: {**config["pictures"], "artists": None, "contact": None, "duplicates": None},
        # A function: text with braces is then no pattern.
        folder=lambda wildcards: config["folder"],
        pictures_found=lambda wildcards: PICTURES_FOUND[wildcards.artist],
        seed=config["seed"],
    script:
        "../scripts/collect_pictures.py"


rule find_duplicates:
    """Find pictures that are nearly the same, of one artist or of two."""
    input:
        pictures=rules_of("pictures"),
        code=code("pictures.duplicates"),
    output:
        f"{RESULTS}/duplicates.parquet",
    log:
        f"{RESULTS}/logs/duplicates.log",
    localrule: True
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        threshold=config["pictures"]["duplicates"] if SOURCE.photographs else None,
    script:
        "../scripts/find_duplicates.py"


rule show_pictures:
    """A page of the pictures that were kept and refused, and why."""
    input:
        pictures=rules_of("pictures"),
        duplicates=f"{RESULTS}/duplicates.parquet",
        template=part("workflow/lora_atlas/pictures/templates/pictures.html"),
        code=code("pictures.page"),
    output:
        f"{RESULTS}/pictures/index.html",
    log:
        f"{RESULTS}/logs/pictures_page.log",
    localrule: True
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        study=STUDY,
        plan=config["plan"],
        pictures={**config["pictures"], "artists": None, "contact": None},
    script:
        "../scripts/show_pictures.py"
