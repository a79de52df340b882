"""Weights: inner products of all LoRAs, per component and block.

Needs: results/{study}/loras/{artist}/{nn}.safetensors of all artists
Makes: results/{study}/weights/{kernel}.safetensors
"""


rule weights:
    input:
        rules_of("weights"),
    localrule: True


rule gram:
    input:
        loras=rules_of("loras"),
        code=code("weights.gram"),
    output:
        gram="results/{study}/weights/{kernel}.safetensors",
        cost="results/{study}/cost/gram/{kernel}.parquet",
    log:
        "results/{study}/logs/gram/{kernel}.log",
    conda:
        "../../envs/lora-atlas.yaml"
    resources:
        mem_mb=config["resources"]["mem_mb"],
        runtime=runtime,
    params:
        ids=[lora for artist in ARTISTS for lora in studies.lora_ids(artist, config["plan"])],
        kernel="{kernel}",
    script:
        "../scripts/gram.py"
