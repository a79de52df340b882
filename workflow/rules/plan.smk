"""Plan: which pictures each LoRA is trained on, gallery and query.

Needs: results/{study}/pictures/{artist}.parquet of all artists, results/{study}/duplicates.parquet
Makes: results/{study}/plan.parquet, and its rows artist by artist in results/{study}/plan/{artist}.parquet
"""


# An artist's part does not depend on the others: with a new artist only the new part has new content.
rule plan:
    """Choose the pictures that each LoRA is trained on."""
    input:
        pictures=rules_of("pictures"),
        duplicates=f"{HOME['pictures']}/duplicates.parquet",
        code=code("study", "tables"),
    output:
        plan=f"{RESULTS}/plan.parquet",
        parts=expand("{r}/plan/{artist}.parquet", r=RESULTS, artist=ARTISTS),
    log:
        f"{RESULTS}/logs/plan.log",
    localrule: True
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        artists=list(ARTISTS),
        plan=config["plan"],
        seed=config["seed"],
    script:
        "../scripts/plan.py"
