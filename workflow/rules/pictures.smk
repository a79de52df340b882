"""Pictures: from the study's source into one table an artist; near-duplicates; a page that shows what was kept and why.

Needs: nothing (source synthetic), the folder named by `folder` (folder, artbench, iconify), a manifest (manifest), or a
       network (huggingface, commons, manifest; artbench, where its files are absent): then pictures.contact too
Makes: results/{study}/pictures/{artist}.parquet, results/{study}/pictures/index.html, results/{study}/duplicates.parquet;
       of a network also the store, and the file that pictures.manifest names
"""

if LISTED:

    rule list_pictures:
        """Ask a source on a network what pictures it has."""
        output:
            update(config["pictures"]["manifest"]),
        log:
            f"{RESULTS}/logs/manifest.log",
        localrule: True
        conda:
            "../../envs/lora-atlas.yaml"
        params:
            code=code("list_pictures", "pictures.sources"),
            pictures=config["pictures"],
        script:
            "../scripts/list_pictures.py"


if config["pictures"]["archive"]:

    rule fetch_artbench:
        """Download ArtBench-10 and check it against the lock."""
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
            code=code("fetch_artbench", "pictures.archive"),
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
        changed=force_changed,
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
        asked=asked(
            "collect_pictures",
            ["pictures.sources", "pictures.synthetic", "pictures.decode", "tables"],
            genre=lambda wildcards: ARTISTS[wildcards.artist],
            artist=lambda wildcards: wildcards.artist,
            pictures={**config["pictures"], **PLACED},
            pictures_found=lambda wildcards: PICTURES_FOUND[wildcards.artist],
            seed=config["seed"],
        ),
    script:
        "../scripts/collect_pictures.py"


rule find_duplicates:
    """Find pictures that are nearly the same, of one artist or of two."""
    input:
        pictures=rules_of("pictures"),
    output:
        f"{RESULTS}/duplicates.parquet",
    log:
        f"{RESULTS}/logs/duplicates.log",
    localrule: True
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        asked=asked(
            "find_duplicates",
            ["pictures.duplicates"],
            threshold=config["pictures"]["duplicates"] if SOURCE.photographs else None,
        ),
    script:
        "../scripts/find_duplicates.py"


rule show_pictures:
    """A page of the pictures that were kept and refused, and why."""
    input:
        pictures=rules_of("pictures"),
        duplicates=f"{RESULTS}/duplicates.parquet",
        template=part("workflow/lora_atlas/pictures/templates/pictures.html"),
    output:
        report(
            f"{RESULTS}/pictures/index.html",
            category="Pages",
            caption="../report/pictures.rst",
            labels={"page": "pictures"},
        ),
    log:
        f"{RESULTS}/logs/pictures_page.log",
    localrule: True
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        asked=asked(
            "show_pictures",
            ["pictures.page"],
            study=STUDY,
            plan=config["plan"],
            titles=content(config["pictures"]["manifest"]) if SOURCE.titled_by else None,
            pictures={**config["pictures"], **PLACED},
        ),
    script:
        "../scripts/show_pictures.py"
