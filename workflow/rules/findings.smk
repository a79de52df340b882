"""Findings: what held and what did not, in plain words, from the tables of the study and of its variants.

Needs: results/{study}/tables/*.parquet; of each variant results/{study}/variants/{variant}/tables/retrieval.parquet and
       others
Makes: results/{study}/FINDINGS.md
"""

# Variants that differ in the seed alone are the study again: all of its tables are asked of them.
REPLICATES = overlays.replicates(config)


rule findings:
    input:
        rules_of("findings"),
    localrule: True


rule write_findings:
    input:
        tables=rules_of("tables"),
        replicates=[
            table.replace(RESULTS, f"{RESULTS}/variants/{variant}", 1)
            for variant in REPLICATES
            for table in rules_of("tables")
        ],
        variants=expand(
            "{r}/variants/{v}/tables/{t}.parquet",
            r=RESULTS,
            v=[variant for variant in VARIANTS if variant not in REPLICATES],
            t=["retrieval", "clustering"],
        ),
        code=code("findings.page"),
    output:
        f"{RESULTS}/FINDINGS.md",
    log:
        f"{RESULTS}/logs/findings.log",
    localrule: True
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        study=STUDY,
        replicates=REPLICATES,
        variants={name: changed for name, changed in overlays.differing(config).items() if name not in REPLICATES},
        embedding=config["embedding"],
        evaluation=config["evaluation"],
        seed=config["seed"],
    script:
        "../scripts/write_findings.py"
