"""LoRA Atlas: artistic style, described by LoRA weights alone.

Paths, under results/{study}/:

    pictures/{artist}.parquet              the pictures of an artist, kept and refused; pictures/index.html shows them
    duplicates.parquet                     pictures that are nearly the same, of one artist or of two
    plan.parquet, plan/{artist}.parquet    which pictures each LoRA is trained on
    loras/{artist}/{nn}.safetensors        a LoRA; loras/{artist}/log.parquet its losses
    generated/{pack}/{setting}.parquet     what they paint; {setting} is s{steps}_g{guidance}, {pack} the first of the
                                           artists that a job handles together
    features/{extractor}/{source}.parquet  image features; {source} is training, or a {setting}
    weights/{kernel}.safetensors           Gram matrices of all LoRAs, per component and block
    embeddings/{descriptor}.parquet        vectors of all LoRAs; {descriptor} is a kernel, or {extractor}_{source}
    tables/{table}.parquet                 clustering, retrieval, cost
    charts/{chart}.png, .svg               weight_map, comparison
    models/{model}.json                    commits and hashes of models of the hub
    cost/{stage}/{item}.parquet            seconds of each costly job

`snakemake` makes the tables and charts; a stage alone is made by its name: pictures, plan, loras, generated, features,
weights, embeddings, tables, charts. `snakemake estimate` says what a study will cost, `snakemake manifest` lists a source on
a network, `snakemake models` fetches models of the hub.
"""


configfile: "config.yaml"


include: "workflow/rules/common.smk"


rule all:
    default_target: True
    input:
        rules_of("page", "tables", "charts"),


include: "workflow/rules/pictures.smk"
include: "workflow/rules/models.smk"
include: "workflow/rules/plan.smk"
include: "workflow/rules/loras.smk"
include: "workflow/rules/generated.smk"
include: "workflow/rules/features.smk"
include: "workflow/rules/weights.smk"
include: "workflow/rules/embeddings.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/charts.smk"
include: "workflow/rules/pretrain.smk"
