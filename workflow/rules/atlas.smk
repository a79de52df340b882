"""Atlas: the page of a study that is opened from the disk: its map, its LoRAs and what its tables say.

Needs: results/{study}/pictures/{artist}.parquet, results/{study}/plan.parquet, results/{study}/generated/{pack}/{setting}.parquet,
       results/{study}/embeddings/{descriptor}.parquet, results/{study}/weights/delta.safetensors,
       results/{study}/tables/{retrieval,queries,clustering,structure,ablation,drift,worth,crossings,cost}.parquet
Makes: results/{study}/atlas.html
"""

# Pictures of one sampler setting are shown: of the last of the grid, which is drawn longest and guided most.
PAINTED_AT = [each for each in settings.settings(config["generation"]) if SETTINGS and each.series is None][-1:]
PAGE_TABLES = ["retrieval", "queries", "clustering", "structure", "ablation", "drift", "cost"]
PAGE_TABLES += ["worth", "crossings"] * bool(SETTINGS)


rule study_page:
    """Write the page of the study: its map by every descriptor, its LoRAs, and what its tables say."""
    input:
        **{table: f"{RESULTS}/tables/{table}.parquet" for table in PAGE_TABLES},
        pictures=rules_of("pictures"),
        generated=generated_of(PACKS, [each.name for each in PAINTED_AT]),
        embeddings=embeddings_of(DESCRIBED),
        delta=[f"{RESULTS}/weights/delta.safetensors"] * ("delta" in KERNELS),
        plan=rules_of("plan")[0],
    output:
        report(PAGE, category="Pages", caption="../report/atlas.rst", labels={"page": "atlas"}),
    log:
        f"{RESULTS}/logs/atlas.log",
    localrule: True
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        asked=asked(
            "study_page",
            ["atlas.trained", "sections"],
            study=STUDY,
            artists=list(ARTISTS),
            tables=PAGE_TABLES,
            descriptors=[each.name for each in DESCRIBED],
            setting=PAINTED_AT[0].label if PAINTED_AT else None,
            pictures={**config["pictures"], **PLACED},
            facts={
                "base": model_named(config["base"]["model"]),
                "rank": str(config["training"]["rank"]),
                "training": f"{config['training']['steps']} steps",
            },
            links={
                "pictures/index.html": "The study's pictures, kept and refused",
                "FINDINGS.md": "FINDINGS.md: what held and what did not, and over which seeds",
            },
            titles=content(config["pictures"]["manifest"]),
            seed=config["seed"],
        ),
    script:
        "../scripts/study_page.py"
