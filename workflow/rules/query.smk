"""Query: the known LoRAs that a LoRA file, or each of a folder of them, is nearest to.

Needs: the file or folder named by `query`; the study's weights
Makes: results/{study}/query/{name}.parquet, and the same as a page, results/{study}/query/{name}.html
"""


rule query:
    """Ask which LoRAs a file, or a folder of them, is near: --config query=PATH."""
    input:
        known=known_loras,
    output:
        table=f"{RESULTS}/query/{ANSWERS['query']}.parquet",
        page=report(
            f"{RESULTS}/query/{ANSWERS['query']}.html",
            category="Pages",
            caption="../report/query.rst",
            labels={"page": "query"},
        ),
    log:
        f"{RESULTS}/logs/query/{ANSWERS['query']}.log",
    localrule: True
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        code=code("query", "collection.query", "atlas.asked", "origin"),
        study=STUDY,
        # A function: text with braces is then no pattern.
        query=lambda wildcards: config["query"],
        content=lambda wildcards: QUERIED,
        # Links lead to a page that is there.
        linked=lambda wildcards: Path(PAGE).is_file(),
        weights={key: config["weights"][key] for key in ("components", "blocks")},
        options=ENGINE,
        weighting=config["weights"]["modules"][0],
    script:
        "../scripts/query.py"
