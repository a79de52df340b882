"""Models of the hub: fetched where there is a network, before the jobs that read them; and what a study will cost.

Needs: a network, for hub ids in base.model and extractors
Makes: results/{study}/models/{model}.json, a receipt (commit, hashes) of what lies in the hub's cache; the file that
       `lock` names; results/{study}/estimate.md and .json
"""


rule fetch_model:
    """Fetch a model of the hub at its commit, and check it."""
    output:
        f"{RESULTS}/models/{{model}}.json",
    log:
        f"{RESULTS}/logs/models/{{model}}.log",
    wildcard_constraints:
        model=r"[\w.-]+",
    localrule: True
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        code=code("fetch_model", "hub.models"),
        model=lambda wildcards: HUB_MODELS[f"{RESULTS}/models/{wildcards.model}.json"],
        lock=config["lock"],
    script:
        "../scripts/fetch_model.py"


# It has no output of its own, so that it always prints.
rule estimate:
    """Say what the study will cost: downloads, bytes, hours."""
    input:
        rates=part("workflow/resources/rates.yaml"),
    log:
        f"{RESULTS}/logs/estimate.log",
    localrule: True
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        code=code("estimate", "estimate"),
        config=config,
        output=f"{RESULTS}/estimate.md",
    script:
        "../scripts/estimate.py"
