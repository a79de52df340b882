"""The cache: what lies there, how large it is and when it was last used; and away with what nobody uses.

Needs: the folder named by `cache`
Makes: nothing; prints
"""


rule cache_list:
    """Say what is kept of earlier jobs, how large it is and when it was last used."""
    log:
        f"{RESULTS}/logs/cache_list.log",
    localrule: True
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        code=code("cache", "store"),
        days=None,
        current=cache_folder(RESULTS),
    script:
        "../scripts/cache.py"


rule cache_prune:
    """Remove what is kept, used by no study here, and for a month by nobody: --config cache_days=DAYS."""
    log:
        f"{RESULTS}/logs/cache_prune.log",
    localrule: True
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        code=code("cache", "store"),
        days=config["cache_days"],
        current=cache_folder(RESULTS),
    script:
        "../scripts/cache.py"
