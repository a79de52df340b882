"""Charts: the map of the weights, and the comparison of descriptors; PNG and SVG, made without a browser.

Needs: results/{study}/pictures/{artist}.parquet, results/{study}/embeddings/{descriptor}.parquet,
       results/{study}/tables/clustering.parquet and retrieval.parquet
Makes: results/{study}/charts/weight_map.png and .svg, comparison.png and .svg
"""


rule charts:
    input:
        rules_of("charts"),
    localrule: True


rule draw_charts:
    input:
        pictures=rules_of("pictures"),
        embedding=f"{RESULTS}/embeddings/{WEIGHT_DESCRIPTORS[0]}.parquet",
        clustering=f"{RESULTS}/tables/clustering.parquet",
        retrieval=f"{RESULTS}/tables/retrieval.parquet",
        code=code("atlas.charts"),
    output:
        map=expand("{r}/charts/weight_map.{format}", r=RESULTS, format=["png", "svg"]),
        comparison=expand("{r}/charts/comparison.{format}", r=RESULTS, format=["png", "svg"]),
    log:
        f"{RESULTS}/logs/charts.log",
    localrule: True
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        artists=list(ARTISTS),
        descriptor=WEIGHT_DESCRIPTORS[0],
        seed=config["seed"],
    script:
        "../scripts/draw_charts.py"
