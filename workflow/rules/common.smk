"""Functions that the rules share. The configuration is checked here, before any job exists."""

import dataclasses
import functools
import glob
import json
import os
import shutil
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.io import IOFile
from snakemake.logging import logger

# The project's folder, wherever the working directory is: code, models and rates are there, data and results here.
ROOT = Path(str(workflow.current_basedir)).parents[1]
# The library lies beside the rules, or where pip has put both beside each other.
LIBRARY = ROOT.parent if ROOT.name == "lora_atlas_workflow" else ROOT / "workflow"
if not (LIBRARY / "lora_atlas").is_dir():
    raise WorkflowError(
        f"the workflow's library is not beside its rules ({ROOT}): Snakemake fetches single files of a remote module. "
        "Clone the repository, and name the Snakefile in the clone"
    )

sys.path.insert(0, str(LIBRARY))

from lora_atlas import (
    code as library,
    config as configuration,
    descriptors,
    keys,
    origin,
    progress,
    schema,
    sections,
    settings,
    store,
    study as studies,
    variants as overlays,
    views,
)
from lora_atlas.findings import about
from lora_atlas.hub import lock as locks
from lora_atlas.hub.models import COMMIT
from lora_atlas.pictures import sources as picture_sources
from lora_atlas.seeds import derive_seed

if workflow.is_main_process:
    for outdated in configuration.outdated(config):
        logger.warning(f"the configuration: {outdated}")
try:
    config = configuration.check(
        # A module may be given the keys alone that differ.
        configuration.filled(config, keys.read_yaml((ROOT / "config.yaml").read_text())),
        schema.read(),
        ROOT,
    )
except studies.StudyError as error:
    raise WorkflowError(str(error)) from None
# 2.0 is 2, and mappings are in one order: names of files are made of settings.
config = keys.normalised(config)


def part(path):
    """A file of the project, as jobs name it: from here where it is below the working directory."""
    if Path.cwd() == ROOT:
        return str(path)
    # pip puts the library beside the workflow, and not into it.
    inside = Path(path).is_relative_to("workflow/lora_atlas")
    return str(LIBRARY / Path(path).relative_to("workflow") if inside else ROOT / path)


def listed_files(path):
    """What a job reads of a file or a folder of people's own: names, sizes and times, so that a change is seen.

    The last is the inode's, which no copy that keeps its date can set.
    """
    if Path(path).is_file():
        # An adapter of PEFT has its scale in the file beside it.
        beside = Path(path).with_name("adapter_config.json")
        files = [path, beside] if beside.is_file() else [path]
    else:
        # Links are followed, and each folder is entered once.
        files, seen = [], set()
        for folder, below, names in os.walk(path, followlinks=True):
            seen.add(os.path.realpath(folder))
            below[:] = [name for name in below if os.path.realpath(Path(folder, name)) not in seen]
            # Results of this project, and Snakemake's notes, where somebody maps the folder that he is in.
            below[:] = [name for name in below if name != ".snakemake" and not origin.are_results(Path(folder, name))]
            files += [file for file in (Path(folder, name) for name in names) if file.is_file()]
        files.sort()
    return [[str(file), file.stat().st_size, file.stat().st_ctime_ns] for file in map(Path, files)]


def of_all_studies():
    """A digest of all tables that `across` reads: claims, and of every study and its replicates the LoRAs by their names
    and what describes them."""
    homes, names = ("results/*", "results/*/variants/*"), ("plan", "tables/claims", "tables/retrieval", "embeddings/*")
    there = (path for home in homes for name in names for path in glob.glob(f"{home}/{name}.parquet"))
    return keys.key({path: keys.DIGESTS.file(path) for path in there})


STUDY = config["study"]
# Either LoRAs are trained on artists' pictures, or they are there.
TRAINED = config["loras"]["source"] == "trained"
if not TRAINED and workflow.is_main_process and not origin.is_of(f"results/{STUDY}", config["folder"]):
    logger.warning(
        f"results/{STUDY} is of another folder, and is made anew of {config['folder']}; with study=NAME both are kept"
    )
LORA_FILES = [] if TRAINED else listed_files(config["folder"])
PICTURES = sections.Pictures(**config["pictures"])
ARTISTS = picture_sources.artists(PICTURES, config["folder"]) if TRAINED else {}
PICTURES_FOUND = picture_sources.digests(PICTURES, config["folder"]) if TRAINED else {}
SOURCE = picture_sources.source(PICTURES)
LISTED, FETCHED = SOURCE.list_pictures is not None, SOURCE.fetch is not None
# What must be there before an artist's pictures are collected.
PICTURES_NEED = [config["pictures"]["manifest"], config["folder"]] if config["pictures"]["archive"] else []
# Whether an artist's rows of the plan depend on nothing but the artist's own pictures.
PLANNED_APART = config["plan"]["content"] == studies.FREE and not config["plan"]["mixtures"]
NUMBERS = studies.lora_numbers(config["plan"])
progress.expect(STUDY, len(ARTISTS) * len(NUMBERS))
# Artists whose LoRAs one job trains together, and has generate together; a pack is called by the first of them.
PACKED = config["shared"] if "loras" in config["shared"].get("stages", []) else config["resources"]
PACKS = studies.packs(list(ARTISTS), PACKED["artists_per_job"])
MODELS = [name for name, extractor in config["extractors"].items() if descriptors.looks(extractor)]
# The extractor that asks the base, if there is one; all else that describes training pictures alone is a control.
BY_GRADIENT = [name for name in [descriptors.of_gradient(config["extractors"])] if name]
CONTROLS = [name for name in config["extractors"] if name not in (*MODELS, *BY_GRADIENT)]
# Without an extractor that looks at them, nothing is generated.
SETTINGS = [setting.name for setting in settings.settings(config["generation"])] * bool(MODELS)
KERNELS = config["weights"]["kernels"]
DESCRIBED = descriptors.descriptors(config)
WEIGHT_DESCRIPTORS = [each for each in DESCRIBED if each.kernel]
PICTURE_DESCRIPTORS = [each for each in DESCRIBED if each.extractor]
CONTROL_DESCRIPTORS = [each for each in DESCRIBED if each.control]
COMPARED = descriptors.compared(DESCRIBED)
# The worth curve is of the series where there are any, else of the grid.
SERIES = bool(config["generation"]["worth"])
PAINTED = [each for each in COMPARED if each.pictures and (each.series is not None) == SERIES]
VIEW = views.headline(config).stored()
# What readers of a table need to know of its descriptors and its headline.
TOLD = {"kinds": descriptors.kinds(DESCRIBED), "view": VIEW, "descriptors": descriptors.stored(DESCRIBED)}
# Module weightings that single modules' matrices are summed by, and those that ask the base.
WEIGHTED = [how for how in config["weights"]["modules"] if how != descriptors.PLAIN]
BASED = [how for how in WEIGHTED if how in (descriptors.GRADIENT, descriptors.KFAC)]
TABLES = ["clustering", "retrieval", "structure", "grid", "ablation", "module_weights", "cost"]
# How the base is asked about pictures, and in which ways besides.
ATTRIBUTION = {key: value for key, value in config["attribution"].items() if key != "ways"}
# How much of it at once is no part of a result: adapters take that from the configuration (job.py).
ATTRIBUTION_ASKED = {key: value for key, value in ATTRIBUTION.items() if key not in ("batch", "memory_mb")}
WAYS = config["attribution"]["ways"] if BY_GRADIENT else None
TABLES += ["worth"] * bool(SETTINGS) + ["attribution"] * bool(BY_GRADIENT) + ["attribution_ways"] * (WAYS is not None)
# Sampler settings whose pictures are asked about; the one that is drawn longest, and without guidance, comes first.
WAYS_GENERATED = [
    setting.name
    for setting in sorted(settings.settings(config["generation"]), key=lambda each: (-each.steps, each.guidance))
    if SETTINGS and WAYS is not None and sections.Ways(**WAYS).generated and not setting.series
]
# Tables that a rule makes beside one of TABLES.
BESIDE = {
    "clustering": ["clustering_differences"],
    "retrieval": ["queries", "differences", "controls", "drift", "crowd"],
    "worth": ["worth_queries", "crossings"],
    "attribution": ["attribution_queries"],
    "attribution_ways": ["attribution_way_queries"],
}
CHARTS = ["weight_map", "comparison", "structure", "ablation", "drift"] + ["worth"] * bool(SETTINGS)
RESULTS = f"results/{STUDY}"
PAGE = f"{RESULTS}/atlas.html"  # of a study, whether its LoRAs are trained or there
# Of LoRAs that are there: the folder of what is made of those of each base, and what says that all are weighed.
SPACES, SPACE_WEIGHTS = f"{RESULTS}/spaces", f"{RESULTS}/cost/gram/spaces.parquet"
# A variant is the study with other settings. What its settings do not change it reads where the study has it.
VARIANTS = overlays.variants(config)
IS_VARIANT = bool(config["shared"])
# The folder of the study, and of each of its variants → its configuration.
CONFIGURED = {RESULTS: config, **{f"{RESULTS}/variants/{name}": variant for name, variant in VARIANTS.items()}}
HOME = {stage: f"results/{config['shared']['study']}" for stage in config["shared"].get("stages", [])}
HOME = {stage: HOME.get(stage, RESULTS) for stage in overlays.STAGES}
OWN = {stage for stage, home in HOME.items() if home == RESULTS}
# What stages read that are about all LoRAs.
LISTED_LORAS = f"{HOME['loras']}/loras/list.parquet"
# How inner products are made, and which files may be opened for them.
ENGINE = {key: config["weights"][key] for key in ("engine", "exact_limit", "sketch_numbers", "pickles", "base")}
# The packages that everything is computed with.
ENVIRONMENT = keys.DIGESTS.file(ROOT / "envs/requirements.lock")
# Of the section pictures, what says where pictures are and how they come, and not what they are: digests of the source
# say that, artist by artist.
PLACED = dict.fromkeys(
    ("artists", "artists_per_genre", "contact", "duplicates", "manifest", "private_network", "store"), None
)
QUERY = picture_sources.slug(Path(config["query"] or "unset").stem)
# Kind of answer, and the folder that it lies in → the name of the one that is asked for.
ANSWERS = {
    kind: QUERY if config["query"] is None else origin.unused_answer(QUERY, config["query"], RESULTS, kind)
    for kind in ("query", "attribution", "one_step")
}
QUERIED = [] if config["query"] is None else listed_files(config["query"])


wildcard_constraints:
    artist="[a-z0-9_-]+",
    pack="[a-z0-9_-]+",
    extractor="[a-z0-9_]+",
    kernel="[a-z0-9_]+",


def code(adapter, *modules):
    """A digest of what an adapter and its modules of the library do: an edit is seen, a touch or a comment is not.

    A function, as params may be: what it looks at is many files, and most rules have no job in a run.
    """
    script = ROOT / "workflow/scripts" / f"{adapter}.py"
    if not script.is_file():
        raise WorkflowError(f"code({adapter!r}, …): there is no {script}; first the adapter is named, then its modules")

    @functools.cache
    def does():
        return library.digest(*modules, also=[script])

    return lambda wildcards: does()


def asked(adapter, modules, **settings):
    """The param `asked` of a rule: what its jobs are asked, as one canonical text, for Snakemake and for keys alike.

    Settings may be functions of wildcards. What a path leads to is said by content (`described`): where things are,
    and which machine does the work, is no part of it, and adapters take that from the configuration.
    """
    does = code(adapter, *modules)

    def said(wildcards):
        known = {"job": adapter, "code": does(wildcards), "environment": ENVIRONMENT}
        own = {name: value(wildcards) if callable(value) else value for name, value in settings.items()}
        return keys.canonical({**known, "settings": own})

    return said


def only(section, *names):
    """Those keys of a section that a stage uses."""
    return {name: section[name] for name in names}


def content(path):
    """What a local file or folder holds; a name that is neither, such as a hub's, is itself."""
    return {"sha256": keys.DIGESTS.content(path)} if path and Path(path).exists() else path


def described(extractor):
    """An extractor by the content of its model."""
    return {**extractor, "model": content(extractor["model"]), "pretrained": content(extractor["pretrained"])}


def pack_of(artist):
    """The pack that an artist's LoRAs are trained in."""
    return next(pack for pack, artists in PACKS.items() if artist in artists)


def painters(pack):
    """The artists whose pictures a pack is trained on: its own, or all where LoRAs are trained on mixtures."""
    return list(ARTISTS) if config["plan"]["mixtures"] else PACKS[pack]


def model_files(model):
    """The files of a model, as inputs: those of a local folder, or the receipts of a hub id."""
    folder = Path(model)
    if folder.is_dir():
        return sorted(str(path) for path in folder.rglob("*") if path.is_file())
    return receipts(model)


def model_named(model):
    """A model as a page calls it: a folder by its last two parts, and what is none by its id on the hub."""
    return about.named(model, Path())


def receipts(model):
    """The receipts of a hub id, as inputs; a local folder is looked at by content (`described`) and has none."""
    return [receipt for receipt, asked in HUB_MODELS.items() if asked["repository"] == model.removeprefix("hf-hub:")]


def hub_models(config, results):
    """Receipt of a download → repository, revision, kind and hash, of every hub id that a study or a variant names."""
    base, found = config["base"], {}
    if not Path(base["model"]).is_dir():
        found["base"] = {
            "repository": base["model"],
            "revision": base["revision"],
            "kind": "base",
            "sha256": None,
            "variant": base["variant"],
        }
    for name, extractor in config["extractors"].items():
        if extractor and extractor["model"].startswith("hf-hub:"):
            found[name] = {
                "repository": extractor["model"].removeprefix("hf-hub:"),
                "revision": extractor.get("revision"),
                "kind": extractor["library"],
                "sha256": extractor.get("sha256"),
            }
    return {f"{results}/models/{name}.json": asked for name, asked in found.items()}


HUB_MODELS = hub_models(config, RESULTS)
# The base by its content, or by its hub id and commit.
BASE = {**config["base"], "model": content(config["base"]["model"])}


def introduce():
    """For `onstart`: an error before any job starts where servers would not be told who asks them, or where what is
    fetched was listed by nobody. No input function says it: Snakemake swallows their errors where the file is there,
    and then takes it as it is."""
    names = {job.rule.name for job in workflow.dag.needrun_jobs()}
    for prefix, asked in {"": config, **{f"{name}_": variant for name, variant in VARIANTS.items()}}.items():
        pictures = asked["pictures"]
        source = picture_sources.source(sections.Pictures(**pictures))
        lists = not names.isdisjoint({f"{prefix}list_pictures", f"{prefix}fetch_artbench"})
        collects = f"{prefix}collect_pictures" in names
        manifest = pictures["manifest"]
        if collects and source.list_pictures is not None and not Path(manifest).exists():
            raise WorkflowError(
                f"there is no {manifest} yet: run `snakemake manifest`, look at it, commit it, run again"
            )
        if (lists or (collects and source.fetch is not None)) and not pictures["contact"]:
            raise WorkflowError(
                "pictures.contact is not set, and this study fetches pictures: servers are told who asks them. Set it "
                "to a mail address or a page, as --config 'pictures={contact: you@example.org}'"
            )


def moved_models():
    """Receipts of models for which the lock file now says another commit, or has lost what it said."""
    for results, asked in CONFIGURED.items():
        locked = locks.read(asked["lock"])["hub"]
        for receipt, model in hub_models(asked, results).items():
            revision = model["revision"] or "main"
            if asked["lock"] is None or COMMIT.fullmatch(revision) or not Path(receipt).is_file():
                continue
            pinned = locked.get(f"{model['repository']}@{revision}", {}).get("commit")
            try:
                told = json.loads(Path(receipt).read_text())["commit"]
            except (OSError, ValueError, KeyError, TypeError):
                told = None  # cut, or empty: it is fetched again
            if pinned is None or pinned != told:
                yield receipt


def force_changed(wildcards):
    """No files; but jobs whose outputs were changed are forced, and take them from what is kept where that is whole.

    Snakemake knows files by their times and offers no hook for this: its graph is told while it is built. An input
    function of the rule that every study begins with is called in time, and in a dry run as in any other.
    """
    if workflow.is_main_process and workflow.dag is not None:
        workflow.dag.forcefiles.update(outdated_files())
        say_unknown()
    return []


@functools.cache
def outdated_files():
    """Outputs that were changed, and receipts of models that are not those of the lock file any more. Looked for once:
    the function above is asked for every artist."""
    found = {file for folder in CONFIGURED for file in store.changed(Path(folder))}
    return frozenset(found | set(moved_models()))


@functools.cache
def say_unknown():
    """Results that were copied or renamed without .snakemake are up to date for Snakemake, whatever is asked: with
    which settings they were made is written there and nowhere else. It says so in dry runs alone."""
    made = list(store.recorded(Path(RESULTS)))
    unknown = sum(workflow.persistence.metadata(IOFile(file)) is None for file in made)
    if unknown:
        logger.warning(
            f"{RESULTS}: of what {unknown} of {len(made)} jobs made, .snakemake does not say here with which settings; "
            "what has changed since is not seen. Copy .snakemake along with results (a study that is renamed loses it), "
            "or name with --forcerun what is to be made anew"
        )


def made_afresh():
    """Rules and files that the command line forces, whose jobs take nothing of what is kept; or "all". Of a LoRA it is
    the job that trains its pack."""
    forced = workflow.dag_settings
    named = {os.path.normpath(str(each)) for each in forced.forcerun} | ({"all"} if forced.forceall else set())
    if forced.forcetargets:
        named |= {os.path.normpath(str(each)) for each in workflow.dag.targetfiles}
    for results, asked in CONFIGURED.items():
        # Who forces no LoRA of it asks for no list of its artists.
        if TRAINED and any(name.startswith(f"{results}/loras/") for name in named):
            artists = list(picture_sources.artists(sections.Pictures(**asked["pictures"]), asked["folder"]))
            for pack, own in studies.packs(artists, asked["resources"]["artists_per_job"]).items():
                if any(name.startswith(f"{results}/loras/{artist}/") for name in named for artist in own):
                    named.add(f"{results}/packs/{pack}")
    return named


def runtime(wildcards, attempt):
    """Minutes; a second attempt gets twice the time."""
    return config["resources"]["runtime"] * attempt


def time_budget(wildcards, attempt):
    """Minutes after which training stops to go on later, growing with the runtime; 0: none."""
    return config["resources"]["time_budget"] * attempt


def mem_of_modules(wildcards, input):
    """Megabytes of a job that weighs modules: their matrices by one kernel, and what a consensus makes of them."""
    kept = [path for path in input if str(path).endswith("weights/modules/all.safetensors")]
    kernels = descriptors.module_kernels(KERNELS, descriptors.KFAC in BASED)
    return config["resources"]["mem_mb"] + 3 * sum(map(os.path.getsize, kept)) // len(kernels) // 10**6


def gpus(wildcards):
    """One GPU for a job that trains or looks at pictures, where this machine has any; a cluster's profile says so."""
    device = config["resources"]["device"]
    return int(device == "cuda" or (device == "auto" and shutil.which("nvidia-smi") is not None))


def embeddings_of(described):
    """The embeddings tables of descriptors."""
    return [f"{RESULTS}/embeddings/{each.name}.parquet" for each in described]


def tables_of(home, tables):
    """Tables of a study or a variant, and those that are made beside them."""
    return [f"{home}/tables/{each}.parquet" for table in tables for each in (table, *BESIDE.get(table, []))]


def of_loras(folder, *artists):
    """The files of artists' LoRAs in a folder. Of many, `expand` takes seconds."""
    return [f"{folder}/{artist}/{number}.safetensors" for artist in artists for number in NUMBERS]


def generated_of(packs, names):
    """The tables of what packs of LoRAs generate at settings."""
    return [f"{HOME['generated']}/generated/{pack}/{name}.parquet" for pack in packs for name in names]


@functools.cache
def files_of(stage):
    """The files of one stage; several rules ask for them."""
    match stage:
        case "pictures":
            return [f"{HOME['pictures']}/pictures/{artist}.parquet" for artist in ARTISTS]
        case "page":
            return [f"{HOME['pictures']}/pictures/index.html"]
        case "plan":
            return [f"{HOME['plan']}/plan.parquet"]
        case "loras":
            return of_loras(f"{HOME['loras']}/loras", *ARTISTS)
        case "kohya":
            return of_loras(f"{RESULTS}/kohya", *ARTISTS)
        case "generated":
            return generated_of(PACKS, SETTINGS)
        case "features":
            looked = [f"{name}/{source}" for name in MODELS for source in ["training", *SETTINGS]]
            looked += [f"{name}/training" for name in [*BY_GRADIENT, *CONTROLS]]
            return [f"{RESULTS}/features/{each}.parquet" for each in looked]
        case "weights":
            return [f"{RESULTS}/weights/{kernel}.safetensors" for kernel in KERNELS]
        case "embeddings":
            return embeddings_of(DESCRIBED)
        case "tables":
            return [f"{RESULTS}/tables/{table}.parquet" for table in TABLES]
        case "findings":
            return [f"{RESULTS}/FINDINGS.md"]
        case "atlas":
            return [PAGE]
        case "charts":
            return [f"{RESULTS}/charts/{chart}.{form}" for chart in CHARTS for form in ("png", "svg")]


def rules_of(*stages):
    """The files that stages are asked for by name."""
    return [file for stage in stages for file in files_of(stage)]


def when_asked(stage):
    """The files of a stage of many, as an input function: looked at when a job needs them, not at every start."""
    return lambda wildcards: files_of(stage)


def cache_folder(results):
    """Where a stage keeps what it knows of files by their content: apart for each version of the code that computes it,
    and for each base that updates are relative to."""
    version = derive_seed(library.digest("weights.gram", "weights.sketch"), content(config["weights"]["base"]))
    return f"{results}/cache/{version:016x}"


def forget_incomplete():
    """Delete what says that a stage of all spaces is done where a file of one of them is gone."""
    table = Path(f"{RESULTS}/tables/loras.parquet")
    if not workflow.is_main_process or not table.is_file():
        return
    from lora_atlas import tables
    from lora_atlas.collection import spaces

    try:
        rows = tables.read(table, "loras").to_pylist()
    except tables.TableError:
        return  # it is made again, and so are they
    made = {
        SPACE_WEIGHTS: spaces.files(SPACES, rows, "weights/delta.safetensors", "weights/weighted.safetensors"),
        f"{RESULTS}/tables/neighbours.parquet": spaces.files(SPACES, rows, "neighbours.parquet", "embedding.parquet"),
        PAGE: spaces.maps(SPACES, rows),
    }
    for stage, files in made.items():
        if not all(file.is_file() for file in files):
            Path(stage).unlink(missing_ok=True)


def asked_about():
    """No files, but an error before any job where nothing is asked about."""
    if config["query"] is None:
        raise WorkflowError(
            "query: name a LoRA file or a folder of them (snakemake query), or a picture or a folder of pictures (snakemake "
            "attribute, snakemake one_step): --config query=PATH"
        )
    return []


def known_loras(wildcards):
    """What a query is held against."""
    asked_about()
    if TRAINED:
        modules = [f"{RESULTS}/weights/modules/all.safetensors"] * bool(WEIGHTED)
        modules += [f"{RESULTS}/weights/modules/base.safetensors"] * bool(BASED)
        return [*rules_of("plan"), f"{RESULTS}/weights/delta.safetensors", *modules, LISTED_LORAS]
    return [f"{RESULTS}/tables/loras.parquet", SPACE_WEIGHTS]


def cost_files(wildcards):
    """The cost of every job that was worth measuring."""
    jobs = (
        [f"{HOME['loras']}/cost/train/{pack}" for pack in PACKS]
        + [f"{HOME['generated']}/cost/generate/{pack}" for pack in PACKS if SETTINGS]
        + [f"{RESULTS}/cost/features/{extractor}" for extractor in [*MODELS, *CONTROLS]]
        + [f"{RESULTS}/cost/attribution/gradients"] * bool(BY_GRADIENT)
        + [f"{RESULTS}/cost/attribution/ways"] * (WAYS is not None)
        + [f"{RESULTS}/cost/gram/{kernel}" for kernel in KERNELS]
        + [f"{RESULTS}/cost/gram/modules", *[f"{RESULTS}/cost/base/sensitivity"] * bool(BASED)]
    )
    return [f"{job}.parquet" for job in jobs]


localrules:
    all,
