"""Plan: which pictures each LoRA is trained on, gallery and query.

Needs: results/{study}/pictures/{artist}.parquet of all artists, results/{study}/duplicates.parquet
Makes: results/{study}/plan.parquet, and its rows artist by artist in results/{study}/plan/{artist}.parquet
"""


rule plan:
    """Choose the pictures that each LoRA is trained on."""
    input:
        pictures=rules_of("pictures"),
        duplicates=f"{HOME['pictures']}/duplicates.parquet",
    output:
        f"{RESULTS}/plan.parquet",
    log:
        f"{RESULTS}/logs/plan.log",
    # Before its parts: it names all artists with too few pictures at once.
    priority: 1
    localrule: True
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        asked=asked(
            "plan",
            ["study", "tables"],
            artists=list(ARTISTS),
            plan=config["plan"],
            seed=config["seed"],
        ),
    script:
        "../scripts/plan.py"


# With a new artist only the new part is made, and only the new LoRAs are trained: an artist's rows are planned from the
# artist's own pictures wherever they depend on nothing else, and else taken from the whole plan. Near-duplicates may be
# another artist's. An input that is `ancient` would not do: Snakemake then overlooks changes of what follows it.
rule plan_artist:
    """An artist's rows of the plan, apart."""
    input:
        plan=[] if PLANNED_APART else f"{RESULTS}/plan.parquet",
        pictures=f"{HOME['pictures']}/pictures/{{artist}}.parquet",
        duplicates=[f"{HOME['pictures']}/duplicates.parquet"] * SOURCE.photographs,
    output:
        f"{RESULTS}/plan/{{artist}}.parquet",
    log:
        f"{RESULTS}/logs/plan/{{artist}}.log",
    localrule: True
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        asked=asked(
            "plan_artist",
            ["study", "tables"],
            plan=config["plan"],
            seed=config["seed"],
        ),
    script:
        "../scripts/plan_artist.py"
