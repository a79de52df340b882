"""LoRA Atlas: artistic style, described by LoRA weights alone.

Paths, under results/{study}/:

    pictures/{artist}.parquet              the pictures of an artist, kept and refused; pictures/index.html shows them
    duplicates.parquet                     pictures that are nearly the same, of one artist or of two
    plan.parquet, plan/{artist}.parquet    which pictures each LoRA is trained on
    loras/{artist}/{nn}.safetensors        a LoRA; loras/{artist}/log.parquet its losses
    loras/list.parquet                     all of them, and what their files hold
    kohya/{artist}/{nn}.safetensors        the same LoRAs under kohya's names, if `export` asks for them
    generated/{pack}/{setting}.parquet     what they paint; {setting} is s{steps}_g{guidance}, {pack} the first of the
                                           artists that a job handles together
    features/{extractor}/{source}.parquet  image features; {source} is training, or a {setting}
    weights/{kernel}.safetensors           Gram matrices of all LoRAs, per component and block; weights/modules per module
    embeddings/{descriptor}.parquet        vectors of all LoRAs; {descriptor} is a kernel, {extractor}_{source}, or a control
    tables/{table}.parquet                 clustering, retrieval, structure, grid, ablation, worth, cost, and what they rest
                                           on; loras, where they are not trained here
    charts/{chart}.png, .svg               weight_map, comparison, worth, structure, ablation, drift
    FINDINGS.md                            what held and what did not, written from the tables
    variants/{variant}/                    the same study under other settings: all of the above that these change
    spaces/{space}/                        of LoRAs that are not trained here: weights/, neighbours.parquet and the map of
                                           those of one base
    atlas.html                             the page of the study, or of the folder of LoRA files: open it
    query/{name}.parquet, .html            the known LoRAs that a file is nearest to
    attribution/{name}.parquet             the known LoRAs that pictures speak for, by one gradient of the base;
                                           attribution/products.safetensors those of the study's own pictures
    one_step/{name}.safetensors            a LoRA of pictures, made in one step without training
    models/{model}.json                    commits and hashes of models of the hub
    cost/{stage}/{item}.parquet            seconds of each costly job

`snakemake` makes the tables, charts and findings; a stage alone is made by its name: pictures, plan, loras, export,
generated, features, weights, embeddings, tables, charts, findings, atlas; of a variant by {variant}_{stage}. `snakemake estimate` says what a study will cost, `snakemake manifest` lists a
source on a network, `snakemake models` fetches models of the hub, and `snakemake query --config query=FILE` asks which
LoRAs a file is near, `snakemake attribute --config query=PICTURES` which LoRAs pictures speak for.
"""

import socket
import subprocess
import time
from pathlib import Path

from snakemake.utils import min_version

min_version("9.19")


report: "workflow/report/workflow.rst"


# The defaults. A config.yaml of the working directory, and what the command line names, go over them.
configfile: f"{workflow.current_basedir}/config.yaml"


if (
    Path("config.yaml").resolve() != Path(f"{workflow.current_basedir}/config.yaml").resolve()
    and Path("config.yaml").is_file()
):

    configfile: "config.yaml"


include: "workflow/rules/start.smk"
include: "workflow/rules/common.smk"


onstart:
    start_at_once()
    if not IS_VARIANT:
        introduce()
    if not TRAINED and not IS_VARIANT:
        origin.keep(RESULTS, config["folder"])
    # What the command line forces is made anew, kept or not (scripts/job.py). Jobs of a cluster inherit it.
    os.environ.update(LORA_ATLAS_AFRESH="\n".join(sorted(made_afresh())))
    os.environ.update(LORA_ATLAS_BEGAN=str(time.time()))
    # Where there is SLURM, its commands are asked in a way in which every job ends (profiles/slurm/bin/slurm.py).
    if shutil.which("sbatch"):
        os.environ.update(
            LORA_ATLAS_SLURM_NOTES=str(Path(".snakemake/lora_atlas_slurm").resolve()),
            LORA_ATLAS_DRIVER=f"{socket.gethostname()}:{os.getpid()}",
            PATH=os.pathsep.join([f"{ROOT}/profiles/slurm/bin", *os.get_exec_path()]),
        )
        if not IS_VARIANT and not workflow.remote_exec:
            subprocess.run([sys.executable, f"{ROOT}/profiles/slurm/bin/slurm.py", "left"])


STARTED = time.time()


onsuccess:
    page = Path(RESULTS, "atlas.html")
    if not IS_VARIANT and page.is_file() and page.stat().st_mtime >= STARTED:
        print(f"\nThe page to open: {page.resolve()}\n", file=sys.stderr)


onerror:
    if not IS_VARIANT:
        kept = (
            "What is done is kept. The same command goes on from there, and training from its last checkpoint: at once "
            "after an interruption, else when what a message above names is mended."
        )
        print(f"\n{kept}\n", file=sys.stderr)


if TRAINED:

    if not IS_VARIANT:

        rule all:
            """The whole study: its page, tables, charts, findings, and the page of its pictures."""
            default_target: True
            input:
                rules_of(
                    "page", "tables", "charts", "findings", "atlas", *([config["export"]] if config["export"] else [])
                ),

    include: "workflow/rules/targets.smk"

    # Stages that a variant shares with its study are made there.
    if "pictures" in OWN:

        include: "workflow/rules/pictures.smk"

    if "plan" in OWN:

        include: "workflow/rules/plan.smk"

    if "loras" in OWN:

        include: "workflow/rules/loras.smk"

    if "generated" in OWN:

        include: "workflow/rules/generated.smk"
    include: "workflow/rules/models.smk"
    include: "workflow/rules/features.smk"
    include: "workflow/rules/weights.smk"
    include: "workflow/rules/embeddings.smk"
    include: "workflow/rules/tables.smk"

    if not IS_VARIANT:

        include: "workflow/rules/charts.smk"
        include: "workflow/rules/atlas.smk"
        include: "workflow/rules/findings.smk"
        include: "workflow/rules/pretrain.smk"

else:

    rule all:
        """What a folder of LoRA files holds: a table of them, and a map of each base's."""
        default_target: True
        input:
            f"{RESULTS}/tables/loras.parquet",
            f"{RESULTS}/tables/neighbours.parquet",
            PAGE,

    include: "workflow/rules/targets.smk"
    include: "workflow/rules/models.smk"
    include: "workflow/rules/inventory.smk"


if TRAINED or not IS_VARIANT:

    include: "workflow/rules/attribution.smk"


if not IS_VARIANT:

    include: "workflow/rules/query.smk"
    include: "workflow/rules/cache.smk"


# A variant is this very file under its own configuration; its rules are called by its name and theirs.
for variant in VARIANTS:

    module:
        name: variant
        snakefile:
            "Snakefile"
        config:
            VARIANTS[variant]

    prefix = f"{variant}_"

    use rule * from variant as prefix*
