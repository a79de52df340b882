"""Findings: what held and what did not, in plain words, from the tables of the study and of its variants.

Needs: results/{study}/tables/*.parquet, results/{study}/plan.parquet; of each variant results/{study}/variants/{variant}/tables/retrieval.parquet and
       others
Makes: results/{study}/FINDINGS.md, results/{study}/tables/claims.parquet; of `across` results/ACROSS.md and
       results/ACROSS.parquet, from the claims and embeddings of all studies that are there
"""

# Variants that differ in the seed alone are the study again: all of its tables are asked of them.
REPLICATES = overlays.replicates(config)
# What is said beside models of what they learnt from. Models are placed: seen from here, or by their full names.
try:
    ABOUT = about.sentences(config, Path())
except studies.StudyError as error:
    raise WorkflowError(str(error)) from None


rule write_findings:
    """Write FINDINGS.md from the tables of the study, its seeds and its variants."""
    input:
        # Whatever the page reads, and nothing else: what lies beside it in the folder may be of other settings.
        tables=tables_of(RESULTS, TABLES),
        plan=rules_of("plan"),
        replicates=[table for variant in REPLICATES for table in tables_of(f"{RESULTS}/variants/{variant}", TABLES)],
        plans=[
            f"{RESULTS}/variants/{variant}/plan.parquet"
            for variant in REPLICATES
            if "plan" not in VARIANTS[variant]["shared"]["stages"]
        ],
        variants=[
            table
            for variant in VARIANTS
            if variant not in REPLICATES
            for table in tables_of(f"{RESULTS}/variants/{variant}", ["retrieval", "clustering"])
        ],
    output:
        page=report(
            f"{RESULTS}/FINDINGS.md",
            category="Findings",
            caption="../report/findings.rst",
            labels={"page": "findings"},
        ),
        claims=f"{RESULTS}/tables/claims.parquet",
    log:
        f"{RESULTS}/logs/findings.log",
    localrule: True
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        asked=asked(
            "write_findings",
            ["findings.page", "findings.about"],
            study=STUDY,
            replicates=REPLICATES,
            variants={name: changed for name, changed in overlays.differing(config).items() if name not in REPLICATES},
            evaluation=only(config["evaluation"], "bootstrap", "confidence"),
            about=ABOUT,
            seed=config["seed"],
        ),
    script:
        "../scripts/write_findings.py"


rule compare_studies:
    """What held in which study: the claims of all studies that are there, side by side, and the same LoRAs on two bases."""
    output:
        page="results/ACROSS.md",
        bases="results/ACROSS.parquet",
    log:
        "results/logs/across.log",
    localrule: True
    conda:
        "../../envs/lora-atlas.yaml"
    params:
        code=code("compare_studies", "findings.across", "tables"),
        # As they are, and no inputs: a study whose settings are today's would first be made again by them, without the
        # seeds that its own file names.
        claims=lambda wildcards: sorted(glob.glob("results/*/tables/claims.parquet")),
        read=lambda wildcards: of_all_studies(),
        permutations=400,
        confidence=0.95,
        seed=0,
    script:
        "../scripts/compare_studies.py"
