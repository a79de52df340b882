"""Pretraining of the mini models. Nobody needs to run it: its result is committed in workflow/resources/mini.

Needs: two CPU cores and about an hour and a half; of the bases of icons `make extras`, and most of an hour each
Makes: results/mini/export, a folder to copy over workflow/resources/mini; results/mini-flow/export,
       results/mini-icons/export and results/mini-flow-icons/export, over those of workflow/resources
"""


rule paint_corpus:
    """Paint the corpus of procedural pictures that the mini models learn from."""
    output:
        "results/mini/corpus.safetensors",
    log:
        "results/mini/logs/corpus.log",
    conda:
        "../../envs/lora-atlas.yaml"
    threads: 2
    params:
        pictures=12000,
        size=64,
        seed=0,
    script:
        "../scripts/paint_corpus.py"


rule pretrain_autoencoder:
    """Pretrain the mini autoencoder."""
    input:
        corpus="results/mini/corpus.safetensors",
    output:
        model=directory("results/mini/autoencoder"),
        log="results/mini/logs/autoencoder.json",
    log:
        "results/mini/logs/autoencoder.log",
    conda:
        "../../envs/lora-atlas.yaml"
    threads: 2
    params:
        steps=2400,
        seed=0,
        state="results/mini/state/autoencoder.pt",
    script:
        "../scripts/pretrain_autoencoder.py"


rule pretrain_base:
    """Pretrain the mini diffusion base."""
    input:
        corpus="results/mini/corpus.safetensors",
        autoencoder="results/mini/autoencoder",
    output:
        model=directory("results/mini/base"),
        log="results/mini/logs/base.json",
    log:
        "results/mini/logs/base.log",
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        network="base",
        steps=5000,
        seed=0,
        state="results/mini/state/base.pt",
    script:
        "../scripts/pretrain_base.py"


rule pretrain_clip:
    """Pretrain the mini CLIP."""
    input:
        corpus="results/mini/corpus.safetensors",
    output:
        model=directory("results/mini/clip"),
        log="results/mini/logs/clip.json",
    log:
        "results/mini/logs/clip.log",
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        steps=1000,
        seed=0,
        state="results/mini/state/clip.pt",
    script:
        "../scripts/pretrain_clip.py"


rule pretrain_dino:
    """Pretrain the mini DINO."""
    input:
        corpus="results/mini/corpus.safetensors",
    output:
        model=directory("results/mini/dino"),
        log="results/mini/logs/dino.json",
    log:
        "results/mini/logs/dino.log",
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        steps=700,
        seed=0,
        state="results/mini/state/dino.pt",
    script:
        "../scripts/pretrain_dino.py"


rule mini_card:
    """Gather the mini models and write their card."""
    input:
        corpus="results/mini/corpus.safetensors",
        base="results/mini/base",
        clip="results/mini/clip",
        dino="results/mini/dino",
        autoencoder="results/mini/autoencoder",
        logs=expand("results/mini/logs/{model}.json", model=["autoencoder", "base", "clip", "dino"]),
    output:
        "results/mini/export/README.md",
    log:
        "results/mini/logs/card.log",
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        seed=0,
    script:
        "../scripts/mini_card.py"


use rule pretrain_base as pretrain_flow_base with:
    input:
        corpus="results/mini/corpus.safetensors",
        autoencoder=part("workflow/resources/mini/base/vae"),
    output:
        model=directory("results/mini-flow/base"),
        log="results/mini-flow/logs/base.json",
    log:
        "results/mini-flow/logs/base.log",
    params:
        network="flow",
        steps=5000,
        seed=0,
        state="results/mini-flow/state/base.pt",


rule flow_card:
    """Gather the mini transformer and write its card, with samples beside those of the mini UNet."""
    input:
        base="results/mini-flow/base",
        log="results/mini-flow/logs/base.json",
        other=part("workflow/resources/mini/base"),
    output:
        "results/mini-flow/export/README.md",
    log:
        "results/mini-flow/logs/card.log",
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        seed=0,
    script:
        "../scripts/flow_card.py"


rule draw_icons:
    """Draw icons of families that no study uses, for a base that has seen some."""
    input:
        "results/extras/iconify/collections.json",
    output:
        corpus="results/mini-icons/corpus.safetensors",
        used="results/mini-icons/used.json",
    log:
        "results/mini-icons/logs/corpus.log",
    conda:
        "../../envs/lora-atlas.yaml"
    threads: 2
    params:
        studies=part("workflow/studies"),
        pictures=24000,
        size=64,
        seed=0,
    script:
        "../scripts/draw_icons.py"


use rule pretrain_base as pretrain_icon_base with:
    input:
        corpus="results/mini-icons/corpus.safetensors",
        autoencoder=part("workflow/resources/mini/base/vae"),
    output:
        model=directory("results/mini-icons/base"),
        log="results/mini-icons/logs/base.json",
    log:
        "results/mini-icons/logs/base.log",
    params:
        network="base",
        steps=5000,
        seed=0,
        state="results/mini-icons/state/base.pt",


rule icon_card:
    """Gather the base of icons and write its card."""
    input:
        corpus="results/mini-icons/corpus.safetensors",
        used="results/mini-icons/used.json",
        families="results/extras/iconify/collections.json",
        base="results/mini-icons/base",
        log="results/mini-icons/logs/base.json",
    output:
        "results/mini-icons/export/README.md",
    log:
        "results/mini-icons/logs/card.log",
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        studies=part("workflow/studies"),
        network="base",
        seed=0,
    script:
        "../scripts/icon_card.py"


use rule pretrain_icon_base as pretrain_flow_icon_base with:
    output:
        model=directory("results/mini-flow-icons/base"),
        log="results/mini-flow-icons/logs/base.json",
    log:
        "results/mini-flow-icons/logs/base.log",
    params:
        network="flow",
        steps=5000,
        seed=0,
        state="results/mini-flow-icons/state/base.pt",


use rule icon_card as flow_icon_card with:
    input:
        corpus="results/mini-icons/corpus.safetensors",
        used="results/mini-icons/used.json",
        families="results/extras/iconify/collections.json",
        base="results/mini-flow-icons/base",
        log="results/mini-flow-icons/logs/base.json",
    output:
        "results/mini-flow-icons/export/README.md",
    log:
        "results/mini-flow-icons/logs/card.log",
    params:
        studies=part("workflow/studies"),
        network="flow",
        seed=0,
