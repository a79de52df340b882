"""Attribution: which LoRAs do pictures speak for, by one gradient of the frozen base?

Needs: the base model; results/{study}/loras/list.parquet and the files that it lists, results/{study}/pictures/{artist}.parquet
       of all artists; of `attribute` the picture or folder named by `query`, and the study's weights
Makes: results/{study}/attribution/products.safetensors, results/{study}/features/{extractor}/training.parquet of the
       extractor of library gradient, results/{study}/tables/attribution.parquet and attribution_queries.parquet;
       attribution.ways: results/{study}/attribution/ways.safetensors and results/{study}/tables/attribution_ways.parquet;
       of `attribute` results/{study}/attribution/{name}.parquet, of `one_step` results/{study}/one_step/{name}.safetensors
"""

if BY_GRADIENT:

    rule ask_gradients:
        """Inner products of every picture's gradient with every LoRA, and the gradients as image features."""
        input:
            pictures=rules_of("pictures"),
            plan=rules_of("plan"),
            loras=LISTED_LORAS,
            base=receipts(config["base"]["model"]),
        output:
            products=f"{RESULTS}/attribution/products.safetensors",
            features=f"{RESULTS}/features/{BY_GRADIENT[0]}/training.parquet",
            cost=f"{RESULTS}/cost/attribution/gradients.parquet",
        log:
            f"{RESULTS}/logs/attribution/gradients.log",
        conda:
            "../../envs/lora-atlas.yaml"
        threads: config["resources"]["threads"]
        resources:
            gpu=gpus,
            mem_mb=config["resources"]["mem_mb"],
            runtime=runtime,
        params:
            asked=asked(
                "ask_gradients",
                ["attribution.measure", "loras.listed"],
                base=BASE,
                attribution=ATTRIBUTION_ASKED,
                training=config["training"],
                probe=config["weights"]["probe"],
            ),
        script:
            "../scripts/ask_gradients.py"

    rule attribution:
        """Do pictures find their artist's LoRAs by one gradient, and how often is one found that is not there?"""
        input:
            products=f"{RESULTS}/attribution/products.safetensors",
            modules=f"{RESULTS}/weights/modules/all.safetensors",
            base=[f"{RESULTS}/weights/modules/base.safetensors"] * bool(BASED),
            plan=rules_of("plan"),
        output:
            attribution=f"{RESULTS}/tables/attribution.parquet",
            queries=f"{RESULTS}/tables/attribution_queries.parquet",
        log:
            f"{RESULTS}/logs/attribution/table.log",
        conda:
            "../../envs/lora-atlas.yaml"
        resources:
            mem_mb=mem_of_modules,
        params:
            asked=asked(
                "attribution",
                ["attribution.study"],
                confidence=config["evaluation"]["confidence"],
                seed=config["seed"],
            ),
        script:
            "../scripts/attribution.py"

    if WAYS is not None:
        WAYS_FILES = {name: generated_of(PACKS, [name]) for name in WAYS_GENERATED}

        rule ask_ways:
            """Values of the LoRAs for pictures, asked in other ways too."""
            input:
                pictures=rules_of("pictures"),
                plan=rules_of("plan"),
                loras=LISTED_LORAS,
                generated=[file for files in WAYS_FILES.values() for file in files],
                moments=[f"{RESULTS}/weights/modules/base.safetensors"] * (descriptors.KFAC in BASED),
                base=receipts(config["base"]["model"]),
            output:
                ways=f"{RESULTS}/attribution/ways.safetensors",
                cost=f"{RESULTS}/cost/attribution/ways.parquet",
            log:
                f"{RESULTS}/logs/attribution/ways.log",
            conda:
                "../../envs/lora-atlas.yaml"
            threads: config["resources"]["threads"]
            resources:
                gpu=gpus,
                mem_mb=config["resources"]["mem_mb"],
                runtime=runtime,
            params:
                asked=asked(
                    "ask_ways",
                    ["attribution.measure_ways", "loras.listed"],
                    settings=WAYS_GENERATED,
                    base=BASE,
                    attribution=ATTRIBUTION_ASKED,
                    ways=WAYS,
                    training=config["training"],
                ),
            script:
                "../scripts/ask_ways.py"

        rule attribution_ways:
            """How well pictures find LoRAs, asked in other ways."""
            input:
                ways=f"{RESULTS}/attribution/ways.safetensors",
                modules=f"{RESULTS}/weights/modules/all.safetensors",
                plan=rules_of("plan"),
            output:
                ways=f"{RESULTS}/tables/attribution_ways.parquet",
                queries=f"{RESULTS}/tables/attribution_way_queries.parquet",
            log:
                f"{RESULTS}/logs/attribution/ways_table.log",
            conda:
                "../../envs/lora-atlas.yaml"
            params:
                asked=asked(
                    "attribution_ways",
                    ["attribution.ways", "attribution.study"],
                    confidence=config["evaluation"]["confidence"],
                ),
            script:
                "../scripts/attribution_ways.py"


if not IS_VARIANT:

    rule attribute:
        """Ask which LoRAs pictures speak for: --config query=PICTURE_OR_FOLDER."""
        input:
            known=known_loras,
            base=model_files(config["base"]["model"]),
        output:
            f"{RESULTS}/attribution/{ANSWERS['attribution']}.parquet",
        log:
            f"{RESULTS}/logs/attribution/{ANSWERS['attribution']}.log",
        conda:
            "../../envs/lora-atlas.yaml"
        threads: config["resources"]["threads"]
        resources:
            gpu=gpus,
            mem_mb=config["resources"]["mem_mb"],
            runtime=runtime,
        params:
            code=code("attribute", "attribution.find", "origin"),
            # A function: text with braces is then no pattern.
            query=lambda wildcards: config["query"],
            content=lambda wildcards: QUERIED,
            options=ENGINE,
            base=config["base"],
            attribution=ATTRIBUTION,
            # Trained LoRAs know one caption and one resolution; of others nobody knows.
            caption=config["training"]["caption"] if TRAINED else "",
            resolution=config["training"]["resolution"] if TRAINED else None,
            probe=config["weights"]["probe"],
            cache=cache_folder(RESULTS),
            device=config["resources"]["device"],
        script:
            "../scripts/attribute.py"

    rule one_step:
        """Make a LoRA of pictures in one step, without training: --config query=PICTURE_OR_FOLDER."""
        input:
            base=model_files(config["base"]["model"]),
            asked=lambda wildcards: asked_about(),
        output:
            f"{RESULTS}/one_step/{ANSWERS['one_step']}.safetensors",
        log:
            f"{RESULTS}/logs/one_step/{ANSWERS['one_step']}.log",
        conda:
            "../../envs/lora-atlas.yaml"
        threads: config["resources"]["threads"]
        resources:
            gpu=gpus,
            mem_mb=config["resources"]["mem_mb"],
            runtime=runtime,
        params:
            code=code("one_step", "attribution.make", "origin"),
            # A function: text with braces is then no pattern.
            query=lambda wildcards: config["query"],
            content=lambda wildcards: QUERIED,
            base=config["base"],
            attribution=ATTRIBUTION,
            training={key: config["training"][key] for key in ("rank", "targets")},
            caption=config["training"]["caption"] if TRAINED else "",
            resolution=config["training"]["resolution"] if TRAINED else None,
            device=config["resources"]["device"],
        script:
            "../scripts/one_step.py"
