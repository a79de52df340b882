"""The plan of a study: a checked configuration, derived seeds, and which pictures each LoRA is trained on.

A study is checked whole before any job starts, and every problem is named at once: a key that does not exist with
the nearest that does, an artist with too few pictures with the number that is needed, a folder with what to put there.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


class StudyError(ValueError):
    """A configuration or a set of pictures that no study can be made of; the message lists every problem."""


def derive_seed(*parts: Any) -> int:
    """A stable 63-bit seed: SHA-256 of the JSON of the parts."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as it is used: an overlay removes an extractor by setting it to null."""
    config = dict(config)
    if isinstance(config.get("extractors"), Mapping):
        config["extractors"] = {name: value for name, value in config["extractors"].items() if value is not None}
    return config


def check(config: Mapping[str, Any], schema: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """The resolved configuration; raises StudyError with all that is wrong. Relative paths are seen from `root`."""
    config = resolve(config)
    problems = list(_schema_problems(config, schema))
    if not problems:  # what is said below takes keys and types for granted
        problems = [*_path_problems(config, root), *_picture_problems(config)]
    if problems:
        raise StudyError("the configuration cannot be used:\n" + "\n".join(f"  - {problem}" for problem in problems))
    return config


def _schema_problems(config: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[str]:
    import jsonschema

    validator = jsonschema.Draft202012Validator(schema)
    for error in sorted(validator.iter_errors(config), key=lambda e: [str(p) for p in e.absolute_path]):
        place = ".".join(str(part) for part in error.absolute_path)
        if error.validator == "additionalProperties":
            known = list(error.schema.get("properties", {}))
            for key in sorted(set(error.instance) - set(known)):
                name = f"{place}.{key}" if place else str(key)
                yield f"{name}: no such key; {_near(str(key), known)}"
        elif error.validator == "required":
            yield f"{place or 'config'}: {error.message}"
        elif error.validator == "enum":
            value = error.instance
            hint = _near(value, error.validator_value) if isinstance(value, str) else f"one of {error.validator_value}"
            yield f"{place}: {value!r} is unknown; {hint}"
        else:
            yield f"{place}: {error.message}"


def _near(name: str, known: Sequence[Any]) -> str:
    known = [str(value) for value in known]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"


def _path_problems(config: Mapping[str, Any], root: Path) -> Iterator[str]:
    base, revision = config["base"]["model"], config["base"]["revision"]
    if not (root / base / "model_index.json").is_file() and not _is_hub_id(base):
        yield (
            f"base.model: there is no diffusers model at {base!r}; expected a folder with model_index.json, unet/, "
            "vae/, text_encoder/, tokenizer/ and scheduler/, or a hub id such as 'owner/name' with base.revision"
        )
    elif _is_hub_id(base) and not (root / base).is_dir() and revision is None:
        yield f"base.revision: {base!r} is a hub id, and the commit to use must be pinned"
    for name, extractor in config["extractors"].items():
        if not re.fullmatch(r"[a-z0-9_]+", name):
            yield f"extractors.{name}: names are lower-case letters, digits and _, since they become file names"
        model = extractor["model"]
        if extractor["library"] != "control" and "/" in model and model.count("/") > 1 and not (root / model).is_dir():
            yield f"extractors.{name}.model: there is no folder {model!r}"
    headline = config["embedding"]["calibration"]
    if headline not in config["embedding"]["calibrations"]:
        yield f"embedding.calibration: {headline!r} is not among embedding.calibrations"


def _is_hub_id(model: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", model)) and not model.startswith(".")


def _picture_problems(config: Mapping[str, Any]) -> Iterator[str]:
    from .pictures import sources

    try:
        counts = sources.count(config["pictures"], config["folder"])
    except ValueError as error:
        yield str(error)
        return
    yield from too_few(counts, config["plan"])
    if len(counts) < 2:
        yield f"pictures: a study compares artists, and there is only {', '.join(counts) or 'none'}"


def needed(plan: Mapping[str, Any]) -> int:
    """How many pictures an artist needs: the largest gallery LoRA and the largest query LoRA share none."""
    return max(plan["gallery"]) + max(plan["query"])


def too_few(counts: Mapping[str, int], plan: Mapping[str, Any]) -> list[str]:
    """One sentence that names every artist with too few pictures, or nothing."""
    short = {artist: count for artist, count in counts.items() if count < needed(plan)}
    if not short:
        return []
    listed = ", ".join(f"{artist} ({count})" for artist, count in sorted(short.items()))
    return [
        f"plan: too few pictures: {listed}; each artist needs {needed(plan)} (the largest of plan.gallery and the "
        f"largest of plan.query, {max(plan['gallery'])} + {max(plan['query'])}). Add pictures, lower these numbers, "
        "or choose artists with pictures.artists"
    ]


def lora_ids(artist: str, plan: Mapping[str, Any]) -> list[str]:
    """Ids of an artist's LoRAs: the gallery's, then the queries'."""
    return [f"{artist}/{number:02d}" for number in range(len(plan["gallery"]) + len(plan["query"]))]


def plan(
    kept: Mapping[str, Sequence[str]], genres: Mapping[str, str | None], settings: Mapping[str, Any], seed: int
) -> list[dict[str, Any]]:
    """Rows of the table "plan" for artists and their kept picture ids; raises StudyError where they are too few.

    An artist's pictures are split into a gallery and a query side; no picture is on both. On each side LoRAs take
    pictures in turn from shuffled rounds, so subsets are disjoint while pictures last, and then overlap evenly;
    `overlap` is the largest share of a LoRA's pictures that another LoRA of its side also has. An artist's rows do
    not depend on the other artists.
    """
    problems = too_few({artist: len(pictures) for artist, pictures in kept.items()}, settings)
    if problems:
        raise StudyError("after refusing pictures that cannot be used (see the reasons in the pictures tables):\n" + problems[0])
    rows = []
    for artist, pictures in kept.items():
        rng = np.random.Generator(np.random.PCG64(derive_seed("plan", seed, artist)))
        shuffled = [str(p) for p in rng.permutation(sorted(pictures))]
        cut = _cut(len(shuffled), settings)
        ids = iter(lora_ids(artist, settings))
        for split, side in (("gallery", shuffled[:cut]), ("query", shuffled[cut:])):
            subsets = _subsets(side, settings[split], rng)
            for number, subset in enumerate(subsets):
                others = [set(s) for i, s in enumerate(subsets) if i != number]
                lora = next(ids)
                rows.append(
                    {
                        "lora": lora,
                        "artist": artist,
                        "genre": genres[artist],
                        "split": split,
                        "seed": derive_seed("lora", seed, lora),
                        "pictures": sorted(subset),
                        "overlap": max((len(set(subset) & other) / len(subset) for other in others), default=0.0),
                    }
                )
    return rows


def _cut(count: int, settings: Mapping[str, Any]) -> int:
    """How many of an artist's pictures are the gallery's: in proportion to demand, and enough for each side."""
    gallery, query = sum(settings["gallery"]), sum(settings["query"])
    share = round(count * gallery / (gallery + query))
    if count >= gallery + query:  # both sides can be disjoint
        return min(max(share, gallery), count - query)
    return min(max(share, max(settings["gallery"])), count - max(settings["query"]))


def _subsets(side: Sequence[str], sizes: Sequence[int], rng: np.random.Generator) -> list[list[str]]:
    """One subset a size, taken in turn from shuffled rounds through `side`."""
    waiting: list[str] = []
    subsets = []
    for size in sizes:
        subset: list[str] = []
        while len(subset) < size:
            if not any(p not in subset for p in waiting):
                waiting += [str(p) for p in rng.permutation(list(side))]
            picked = next(p for p in waiting if p not in subset)
            waiting.remove(picked)
            subset.append(picked)
        subsets.append(subset)
    return subsets
