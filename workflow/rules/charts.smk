"""Charts: the map of the weights, the comparison of descriptors, and what the tables of the evaluation show.

Needs: results/{study}/pictures/{artist}.parquet, results/{study}/embeddings/{descriptor}.parquet,
       results/{study}/tables/*.parquet, results/{study}/plan.parquet; where pictures are asked about by one gradient,
       results/{study}/attribution/products.safetensors and results/{study}/weights/modules/all.safetensors
Makes: results/{study}/charts/{chart}.png and .svg, without a browser
"""


rule draw_charts:
    """Draw the charts of a study from its tables."""
    input:
        pictures=rules_of("pictures"),
        embedding=embeddings_of(WEIGHT_DESCRIPTORS[:1]),
        clustering=f"{RESULTS}/tables/clustering.parquet",
        retrieval=f"{RESULTS}/tables/retrieval.parquet",
        structure=f"{RESULTS}/tables/structure.parquet",
        ablation=f"{RESULTS}/tables/ablation.parquet",
        drift=f"{RESULTS}/tables/drift.parquet",
        worth=[f"{RESULTS}/tables/worth.parquet"] * bool(SETTINGS),
        # Where the pictures of queries lie among the LoRAs, if the base was asked.
        products=[f"{RESULTS}/attribution/products.safetensors"] * bool(BY_GRADIENT),
        modules=[f"{RESULTS}/weights/modules/all.safetensors"] * bool(BY_GRADIENT),
        plan=rules_of("plan"),
    output:
        **{
            chart: [
                report(
                    f"{RESULTS}/charts/{chart}.png",
                    category="Charts",
                    caption=f"../report/{chart}.rst",
                    labels={"chart": chart.replace("_", " ")},
                ),
                f"{RESULTS}/charts/{chart}.svg",
            ]
            for chart in CHARTS
        },
    log:
        f"{RESULTS}/logs/charts.log",
    localrule: True
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        asked=asked(
            "draw_charts",
            ["atlas.charts", "atlas.evaluation", "attribution.study"],
            artists=list(ARTISTS),
            charts=CHARTS,
            told=TOLD,
            descriptor=WEIGHT_DESCRIPTORS[0].name,
            seed=config["seed"],
        ),
    script:
        "../scripts/draw_charts.py"
