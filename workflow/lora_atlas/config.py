"""The configuration of a study, checked whole before any job starts.

Every problem is named at once: a key that does not exist with the nearest that does, an artist with too few pictures
with the number that is needed, a folder with what to put there.
"""

import contextlib
import difflib
import errno
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from .descriptors import (
    BY_CONTENT,
    BY_CONTROL,
    BY_GRADIENT,
    CONSENSUS,
    PLAIN,
    WEIGHTS,
    baseless,
    descriptors,
    of_gradient,
)
from .features.extract import CONTROLS, bare_weights, known_names
from .hub import pipelines
from .hub.models import COMMIT
from .labels import printable
from .loras.folder import find
from .pictures import sources
from .sections import Pictures
from .study import FREE, StudyError, too_few
from .variants import merge, variants

PATHS = ("folder", "query", "pictures.manifest", "base.model", "weights.base")  # keys that people's own names go into
PATH_KEYS = {"folder", "query", "lock", "cache", "manifest", "store", "model", "base", "pretrained"}  # of any section
# Keys that had another name, section by section: old → new. Accepted, with a warning, until the next release.
RENAMED = {"evaluation": {"level": "confidence"}}


def check(config: Mapping[str, Any], schema: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """The resolved configuration; raises StudyError with all that is wrong.

    Relative paths are seen from the working directory; what is not there and is part of the project, such as the mini
    models, is taken from `root`, the project's folder.
    """
    config = resolve(config, schema)
    problems = list(_schema_problems(config, schema)) or list(_path_problems(config))
    if not problems:  # what is said below takes keys and types for granted
        config = placed(config, root)
        trained = config["loras"]["source"] == "trained"
        problems = [*_model_problems(config), *(_extractor_problems(config) if trained else [])]
        problems += _weight_problems(config)
        problems += _picture_problems(config) if trained else _folder_problems(config["folder"])
    if not problems:
        problems += _variant_problems(config, schema, root)
    if problems:
        raise StudyError(
            "the configuration cannot be used:\n"
            + "\n".join("  - " + "\n".join(map(printable, problem.split("\n"))) for problem in problems)
        )
    return config


def _path_problems(config: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """Texts that no file can be called by, wherever they stand: any may be looked for."""
    for key, value in config.items():
        name = f"{where}{key}"
        if isinstance(value, Mapping):
            if name not in ("variants", "shared"):  # a variant is checked by itself
                yield from _path_problems(value, f"{name}.")
        elif isinstance(value, str) and name.rpartition(".")[2] in PATH_KEYS:
            try:
                os.stat(value)
            except (OSError, ValueError) as error:  # ValueError: a character that no name may have
                if isinstance(error, OSError) and error.errno != errno.ENAMETOOLONG:
                    continue  # absent, or not for us: what looks for it says so
                why = error.strerror if isinstance(error, OSError) else str(error)
                yield f"{name}: {value[:80]!r} … names no file ({why}); expected a path"


def _variant_problems(config: Mapping[str, Any], schema: Mapping[str, Any], root: Path) -> Iterator[str]:
    if config["variants"] and config["loras"]["source"] != "trained":
        yield "variants: only a study that trains its LoRAs has any; loras.source is folder"
        return
    for name, variant in variants(config).items():
        try:
            check(variant, schema, root)
        except StudyError as error:
            for line in str(error).splitlines()[1:]:
                yield f"variants.{name}: {line.removeprefix('  - ')}"


def resolve(config: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as it is used: typed, and without the extractors that an overlay has set to null."""
    found: dict[str, Any] = _typed(config, schema, schema)
    if isinstance(found.get("extractors"), Mapping):
        found["extractors"] = {name: value for name, value in found["extractors"].items() if value is not None}
    return found


def stated(key: str, value: Any) -> str:
    """A key and its value as --config takes them, so that no name is read as anything but text: as JSON, which is YAML
    in which no name is a number and no " #" begins a remark. Snakemake takes off quotes at the ends of a value, but not
    within spaces."""
    section, _, inner = key.rpartition(".")
    text = json.dumps(value, ensure_ascii=False)
    return f"{section}={{{inner}: {text}}}" if section else f"{inner}= {text} "


def quoted(key: str, name: str) -> str:
    """The same as it stands between a shell's single quotes."""
    return stated(key, name).replace("'", "'\\''")


def cut(key: str, path: str | None) -> str:
    """A word on a path that is absent, and was cut where a comment begins in YAML, as which --config reads values."""
    if path is None or Path(path).exists():
        return ""
    try:
        longer = sorted(
            each.name for each in Path(path).parent.iterdir() if each.name.startswith(f"{Path(path).name} #")
        )
    except OSError:
        longer = []
    if not longer:
        return ""
    name = printable(str(Path(path).with_name(longer[0])))
    written = f"--config '{quoted(key, name)}'"
    return f" (there is {name!r}: ' #' begins a comment in --config; with both spaces, {written} is read)"


def placed(config: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """The configuration with the files that only the project has under their full names, and a person's home in place
    of ~, which a shell leaves after folder=."""

    def place(path: Any) -> Any:
        return str(root / path) if path and not Path(path).exists() and (root / path).exists() else path

    def home(path: Any) -> Any:
        return str(Path(path).expanduser()) if path and path.startswith("~/") and not Path(path).exists() else path

    extractors = {
        name: each | {key: place(each[key]) for key in ("model", "pretrained")}
        for name, each in config["extractors"].items()
    }
    return {
        **config,
        "folder": home(config["folder"]),
        "query": home(config["query"]),
        "lock": place(config["lock"]),
        "base": config["base"] | {"model": place(home(config["base"]["model"]))},
        "pictures": config["pictures"] | {"manifest": place(home(config["pictures"]["manifest"]))},
        "weights": config["weights"] | {"base": home(config["weights"]["base"])},
        "extractors": extractors,
    }


def filled(config: Mapping[str, Any], *defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration over defaults, the last of them first; what a variant has is whole already."""
    if config.get("shared"):
        return dict(config)
    found: dict[str, Any] = {}
    for layer in (*defaults, config):
        found = merge(found, renamed(layer))
    return found


def renamed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with its keys under their present names, those of variants too.

    An old name wins over the new one: over the defaults it is what a person wrote.
    """
    found = dict(config)
    for section, names in RENAMED.items():
        if isinstance(found.get(section), Mapping):
            own = dict(found[section])
            found[section] = own
            for old, new in names.items():
                if old in own:
                    own[new] = own.pop(old)
    if isinstance(found.get("variants"), Mapping):
        found["variants"] = {
            name: renamed(each) if isinstance(each, Mapping) else each for name, each in found["variants"].items()
        }
    return found


def outdated(config: Mapping[str, Any], place: str = "") -> Iterator[str]:
    """A warning for every key that has another name now."""
    for section, names in RENAMED.items():
        for old, new in names.items():
            if isinstance(config.get(section), Mapping) and old in config[section]:
                yield f"{place}{section}.{old} is called {section}.{new} now; the next release drops the old name"
    if isinstance(config.get("variants"), Mapping):
        for name, each in config["variants"].items():
            if isinstance(each, Mapping):
                yield from outdated(each, f"variants.{name}.")


def _typed(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    """Snakemake hands over nested values of --config as text: read as YAML what the schema wants to be no text."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    if isinstance(value, str):
        types = schema.get("type", "string" if "enum" in schema else [])
        types = [types] if isinstance(types, str) else types
        if types and ("string" not in types or (value == "null" and "null" in types)):
            with contextlib.suppress(yaml.YAMLError):
                value = yaml.safe_load(value)
        if "number" in types and isinstance(value, str):  # YAML 1.1 takes 1e-4 for text, since it has no point
            with contextlib.suppress(ValueError):
                value = float(value)
    if isinstance(value, Mapping):
        known, others = schema.get("properties", {}), schema.get("additionalProperties")
        others = others if isinstance(others, Mapping) else {}
        return {key: _typed(inner, known.get(key, others), root) for key, inner in value.items()}
    if isinstance(value, list):
        return [_typed(inner, schema.get("items", {}), root) for inner in value]
    return value


def _schema_problems(config: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[str]:
    import jsonschema

    validator = jsonschema.Draft202012Validator(schema)
    for error in sorted(validator.iter_errors(config), key=lambda e: [str(p) for p in e.absolute_path]):
        place = ".".join(str(part) for part in error.absolute_path)
        if error.validator == "additionalProperties":
            known = list(error.schema.get("properties", {}))
            for key in sorted(set(error.instance) - set(known), key=str):
                name = f"{place}.{key}" if place else str(key)
                yield f"{name}: no such key; {_near(str(key), known)}"
        elif error.validator == "required":
            yield f"{place or 'config'}: {error.message}"
        elif error.validator == "enum":
            value = error.instance
            hint = _near(value, error.validator_value) if isinstance(value, str) else f"one of {error.validator_value}"
            yield f"{place}: {value!r} is unknown; {hint}"
        elif error.validator == "type" and place in PATHS:
            # What a command line says is read as YAML: 2024_11 is a number there, and its underscore is lost.
            # [SDXL], {a} and "a: b" are lists and mappings.
            said = (
                f"{place}: {error.instance!r} is no text, since --config reads values as YAML; a folder or a file of "
            )
            if isinstance(error.instance, Mapping | list):
                yield f"{said}such a name is written, with both spaces, --config '{quoted(place, '[a] {b}: c')}'"
            else:
                yield f"{said}such a name is written with ./ before it, as ./2024_11"
        elif error.validator == "type":
            yield f"{place or 'config'}: {_mistyped(error.instance, error.validator_value)}"
        else:
            yield f"{place}: {error.message}"


_KINDS = {
    "array": "a list", "object": "a mapping of keys", "string": "text", "integer": "a whole number",
    "number": "a number", "boolean": "true or false", "null": "null",
}  # fmt: skip


def _mistyped(value: Any, wanted: str | Sequence[str]) -> str:
    """What a value of another type is to be, in words of YAML and not of its schema."""
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    said = json.dumps(value, ensure_ascii=False, default=str)
    said = said if len(said) <= 60 else f"{said[:57]}…"
    hint = ""
    if "array" in wanted and not isinstance(value, Mapping):
        hint = f"; a single one is written [{value}]"
    elif "string" in wanted and isinstance(value, bool | int | float):
        hint = f"; in quotes it is text: '{value}'"
    return f"expected {' or '.join(_KINDS[kind] for kind in wanted)}, found {said}{hint}"


def _near(name: str, known: Sequence[Any]) -> str:
    known = [str(value) for value in known]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"


def _model_problems(config: Mapping[str, Any]) -> Iterator[str]:
    base, revision = config["base"]["model"], config["base"]["revision"]
    if not (Path(base) / "model_index.json").is_file() and (Path(base).is_dir() or not _is_hub_id(base)):
        yield (
            f"base.model: there is no diffusers model at {base!r}; expected a folder with model_index.json, unet/ "
            "or transformer/, vae/, text_encoder/, tokenizer/ and scheduler/, or a hub id such as 'owner/name' with "
            "base.revision"
        )
    elif not Path(base).is_dir() and revision is None:
        yield (
            f"base.model: there is no folder {base!r} with a model_index.json here; if it is a hub id, name the commit "
            "to use in base.revision"
        )
    elif not Path(base).is_dir() and not COMMIT.fullmatch(revision):
        yield f"base.revision: {revision!r} is no commit of {base}; name its 40 characters, a branch moves"
    elif (refused := pipelines.problem(base)) is not None:
        yield refused


def _extractor_problems(config: Mapping[str, Any]) -> Iterator[str]:
    for name, extractor in config["extractors"].items():
        if not re.fullmatch(r"[a-z0-9_]+", name):
            yield f"extractors.{name}: names are lower-case letters, digits and _, since they become file names"
        model = extractor["model"]
        if extractor["library"] == BY_CONTROL:
            if model not in CONTROLS:
                yield f"extractors.{name}.model: {model!r} is no control; {_near(model, list(CONTROLS))}"
        elif extractor["library"] == BY_GRADIENT:
            yield from _gradient_problems(config, name)
        elif model.startswith("hf-hub:"):
            if not COMMIT.fullmatch(extractor.get("revision") or "") and config["lock"] is None:
                yield (
                    f"extractors.{name}.revision: name the commit of {model}, or set `lock` to a file that keeps "
                    "the one that the first fetch finds"
                )
        elif extractor["library"] in ("csd", "vgg_gram"):
            weights = extractor["pretrained"] or model
            if not Path(weights).exists():
                yield f"extractors.{name}: there is no {weights!r}; of a hub write 'hf-hub:owner/name'"
        elif "/" in model and not model.startswith("hf-hub:") and not Path(model).is_dir():
            fetched = "; `make extras` fetches it" if "extras/" in model else "; of a hub write 'hf-hub:owner/name'"
            yield f"extractors.{name}.model: there is no folder {model!r}{fetched}"
        elif extractor["library"] in ("open_clip", "timm") and not Path(model).is_dir():
            yield from _name_problems(name, extractor)


def _name_problems(name: str, extractor: Mapping[str, Any]) -> Iterator[str]:
    library, model, pretrained = extractor["library"], extractor["model"], extractor["pretrained"]
    known = known_names(library)
    asked = model.split(".")[0] if library == "timm" else model
    if known and asked not in known:
        near = difflib.get_close_matches(asked, sorted(known), n=3)
        hint = f" (near: {', '.join(near)})" if near else ""
        yield f"extractors.{name}.model: {model!r} is neither a folder here nor a model of {library}{hint}"
    elif library == "open_clip" and pretrained and Path(pretrained).is_file():
        yield f"extractors.{name}: {bare_weights(model, pretrained)}"


def _gradient_problems(config: Mapping[str, Any], name: str) -> Iterator[str]:
    model = config["extractors"][name]["model"]
    if model != "base":
        yield f"extractors.{name}.model: {model!r} is not asked for its gradient; write base: it is base.model"
    if name != of_gradient(config["extractors"]):
        yield f"extractors.{name}: one extractor of the library gradient is enough; set this one to null"


def _weight_problems(config: Mapping[str, Any]) -> Iterator[str]:
    if config["loras"]["source"] == "folder" and baseless(config["weights"]["modules"]) is None:
        yield (
            f"weights.modules: {config['weights']['modules']} all need a base or labels; a folder of LoRA files can be "
            f"weighed by {CONSENSUS!r} or {PLAIN!r}: write weights.modules: [{CONSENSUS}]"
        )
    asked, base = config["query"], config["weights"]["base"]
    if asked is not None and not Path(asked).exists():
        yield (
            f"query: there is no file or folder {asked!r}{cut('query', asked)}; name a file or a folder, of LoRAs "
            "(`snakemake query`) or of pictures (`snakemake attribute`)"
        )
    if base is not None and not (Path(base) / "unet").is_dir() and not (Path(base) / "transformer").is_dir():
        yield f"weights.base: {base!r} is no diffusers folder (it has neither unet/ nor transformer/)"
    headline = config["embedding"]["calibration"]
    if headline not in config["embedding"]["calibrations"]:
        yield f"embedding.calibration: {headline!r} is not among embedding.calibrations"
    if config["loras"]["source"] == "trained":
        names = [each.name for each in descriptors(config)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            yield f"extractors: two descriptors would be called {', '.join(twice)}; give an extractor another name"
        if not any(descriptor.kind == WEIGHTS for descriptor in descriptors(config)):
            yield (
                f"weights.modules: {config['weights']['modules']} with weights.kernels "
                f"{config['weights']['kernels']} leaves no descriptor of the weights: kfac and learnt weigh the kernel "
                "delta alone, and learnt is an upper bound beside others; add plain to weights.modules"
            )


def _is_hub_id(model: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", model)) and not model.startswith(".")


def _folder_problems(folder: str | None) -> Iterator[str]:
    if folder is None:
        yield "folder: not set; loras.source is folder, and `--config folder=PATH` names the folder of LoRA files"
        return
    try:
        find(folder)
    except ValueError as error:
        yield f"folder: {error}{cut('folder', folder)}"


def _picture_problems(config: Mapping[str, Any]) -> Iterator[str]:
    pictures = config["pictures"]
    if pictures["archive"] and pictures["source"] != "artbench":
        yield f"pictures.archive: only the source artbench has one, and pictures.source is {pictures['source']}"
    try:
        counts = sources.count(Pictures(**pictures), config["folder"])
    except ValueError as error:
        yield f"{error}{cut('folder', config['folder'])}"
        return
    yield from too_few(counts, config["plan"], pictures["per_artist"])
    if not sources.source(Pictures(**pictures)).subjects:
        unsaid = f"needs to know what each picture shows, which pictures.source {pictures['source']} does not say"
        if config["plan"]["content"] != FREE:
            yield f"plan.content: {config['plan']['content']!r} {unsaid}; write {FREE}"
        if BY_CONTENT in config["weights"]["controls"]:
            yield f"weights.controls: {BY_CONTENT!r} {unsaid}; take it out"
    if len(counts) < 2:
        yield f"pictures: a study compares artists, and there is only {', '.join(counts) or 'none'}"
