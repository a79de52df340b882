"""What a study will cost before it runs: files and their revisions, bytes on disk, hours; from its config alone.

Counts are exact, sums of what the stages will do. Bytes and seconds come from workflow/resources/rates.yaml, where each
says its source; what was assumed there is called assumed here. No network, and no file of the study is needed.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from .descriptors import KFAC, looks, module_kernels, of_gradient
from .hub import lock as locks
from .pictures import sources
from .sections import Pictures, Ways
from .settings import settings
from .store import COPIED
from .study import lora_numbers
from .tables import replacing
from .variants import variants

FLOAT = 4  # bytes of a number in a LoRA file


@dataclass(frozen=True)
class Download:
    """One thing to fetch: `revision` is a commit or hash, None: the first fetch finds it; `bytes` None: unknown."""

    name: str
    revision: str | None
    bytes: int | None
    exact: bool


@dataclass(frozen=True)
class Estimate:
    """Counts, bytes on disk by stage, downloads, and hours by stage, of a study with its variants; `measured` says
    whether the rates were."""

    study: str
    variants: int
    artists: int
    loras: int
    pictures: int
    generated: int
    disk: dict[str, int]
    downloads: list[Download]
    hours: dict[str, float]
    rates: str
    measured: bool


def _named(base: str, known: Collection[str]) -> str:
    """The name by which rates know a base: its own, or of a folder of the project that is seen from elsewhere by its
    full name, its path within the project."""
    own = [each for each in known if each.startswith("workflow/") and Path(base).match(f"*/{each}")]
    return own[0] if base not in known and own else base


def estimate(config: Mapping[str, Any], rates: Mapping[str, Any]) -> Estimate:
    """The estimate of a checked configuration and of its variants; ValueError for a base that the rates do not know."""
    every = [
        each | {"extractors": {name: extractor for name, extractor in each["extractors"].items() if extractor}}
        for each in (dict(config), *variants(config).values())
    ]
    parts = [_part(each, rates, every[0]) for each in every]
    disk = {stage: sum(part.disk[stage] for part in parts) for stage in parts[0].disk}
    downloads = list(dict.fromkeys(each for one in every for each in _downloads(one, rates)))
    disk["downloads"] = sum(each.bytes or 0 for each in downloads)
    seconds = rates["seconds"][_base(config, rates)["rates"]]
    return Estimate(
        config["study"],
        len(every) - 1,
        parts[0].artists,
        sum(part.loras for part in parts),
        sum(part.pictures for part in parts),
        sum(part.generated for part in parts),
        disk,
        downloads,
        {stage: sum(part.hours[stage] for part in parts) for stage in parts[0].hours},
        seconds["source"],
        seconds["measured"],
    )


@dataclass(frozen=True)
class _Part:
    """What a study makes itself, or a variant, which has the study's pictures, LoRAs or generated pictures where its
    settings do not change them."""

    artists: int
    loras: int
    pictures: int
    generated: int
    disk: dict[str, int]
    hours: dict[str, float]


def _base(config: Mapping[str, Any], rates: Mapping[str, Any]) -> Mapping[str, Any]:
    base = _named(config["base"]["model"], rates["bases"])
    if base not in rates["bases"]:
        raise ValueError(
            f"base.model: no rates for {base!r} in workflow/resources/rates.yaml; it knows "
            f"{', '.join(rates['bases'])}. Add the base there, with what one of its steps costs"
        )
    known: Mapping[str, Any] = rates["bases"][base]
    return known


def _part(config: Mapping[str, Any], rates: Mapping[str, Any], study: Mapping[str, Any]) -> _Part:
    """What a configuration makes itself; `study`: the one that it is a variant of, or itself."""
    known, shared = _base(config, rates), config["shared"].get("stages", [])
    seconds = rates["seconds"][known["rates"]]
    counts = sources.count(Pictures(**config["pictures"]), config["folder"])
    training, generation, weights = config["training"], config["generation"], config["weights"]
    models = [each for each in config["extractors"].values() if looks(each)]
    loras = len(counts) * len(lora_numbers(config["plan"]))
    unknown = [artist for artist, number in counts.items() if number >= 10**6]
    needed = sum(config["plan"]["gallery"]) + sum(config["plan"]["query"])
    pictures = sum(needed if artist in unknown else number for artist, number in counts.items())
    sampled = settings(generation) if models else []
    generated = loras * sum(setting.count for setting in sampled)
    numbers = sum(known[target] for target in training["targets"]) * training["rank"]
    side = training["resolution"]
    # A network that is told of its guidance needs no second pass for it.
    passes = loras * sum(
        setting.count * (setting.steps if known.get("distilled") else setting.passes) for setting in sampled
    )
    trains, paints = "loras" not in shared, "generated" not in shared
    own_pictures = 0 if "pictures" in shared else pictures
    looked, every = own_pictures + generated * paints, pictures + generated
    # What a variant has of the study is looked at again only by the extractors that it adds.
    added = [each for each in models if shared and each not in study["extractors"].values()]
    looking = len(models) if looked or not shared else len(added)
    vectors = looked * (len(models) - len(added)) + every * len(added)
    disk = {
        "pictures": own_pictures * rates["picture"]["archive" if config["pictures"]["archive"] else "other"]["bytes"],
        "loras": loras * numbers * FLOAT * trains,
        "generated": generated * side * side * rates["picture"]["generated"]["bytes"] * paints,
        "features": vectors * 1024 * FLOAT,
        "weights": loras * loras * 8 * (12 * len(weights["kernels"]) + _matrices(config, known["layers"])),
        "sketches": loras * weights["sketch_numbers"] * FLOAT * _sketched(weights, loras) * trains,
    }
    # What jobs made is kept for other studies, too: small files twice, large ones by links or shared blocks.
    files = {"pictures": len(counts), "loras": loras, "generated": len(counts) * len(sampled)}
    files["features"] = len(counts) * len(models) * (1 + len(sampled))
    disk["cache"] = sum(disk[stage] for stage, number in files.items() if disk[stage] <= COPIED * number)
    # Forward and backward once a sample, as a LoRA's step of training: of all pictures, and of the base's own.
    attribution = config["attribution"]
    asked = (pictures + attribution["reference"]) * attribution["samples"]
    asks = of_gradient(config["extractors"]) is not None
    known_already = shared and of_gradient(study["extractors"]) is not None and attribution == study["attribution"]
    asked = (asked + _other_ways(config, len(counts))) * (asks and (trains or not known_already))
    jobs = -(-len(counts) // config["resources"]["artists_per_job"])
    trained = loras * training["steps"] * training["batch"] * seconds["train"] + jobs * seconds["start"]
    hours = {
        "training": trained * trains / 3600,
        "generation": (passes * seconds["generate"] + jobs * seconds["start"] * bool(models)) * paints / 3600,
        "attribution": asked * seconds["train"] / 3600,
        "features": (vectors * seconds["features"] + looking * seconds["start"]) / 3600,
    }
    return _Part(len(counts), loras * trains, own_pictures, generated * paints, disk, hours)


def _sketched(weights: Mapping[str, Any], loras: int) -> bool:
    return bool(weights["engine"] == "sketch" or (weights["engine"] == "auto" and loras > weights["exact_limit"]))


def _matrices(config: Mapping[str, Any], layers: Mapping[str, int]) -> int:
    """Gram matrices of single modules, of all kernels."""
    weights = config["weights"]
    return sum(layers[target] for target in config["training"]["targets"]) * len(
        module_kernels(weights["kernels"], KFAC in weights["modules"])
    )


def _other_ways(config: Mapping[str, Any], artists: int) -> int:
    """Noisy samples of section attribution.ways; a pass under a LoRA, which has no way back, as a third of one."""
    attribution, plan = config["attribution"], config["plan"]
    if attribution["ways"] is None:
        return 0
    ways = Ways(**attribution["ways"])
    queries, gallery = artists * sum(plan["query"]), artists * len(plan["gallery"])
    few = artists * sum(size for size in plan["query"] if size <= ways.few)
    times = max([*ways.samples, attribution["samples"]]) + attribution["samples"] * (
        len(ways.captions) + bool(ways.powers)
    )
    exact = few * (ways.classifier or 0) * (1 + -(-gallery // 3))
    painted = min(ways.generated, gallery) * len(config["generation"]["prompts"]) * attribution["samples"]
    grid = len(config["generation"]["num_inference_steps"]) * len(config["generation"]["guidance_scale"])
    return queries * times + exact + painted * (grid + 2)


def _downloads(config: Mapping[str, Any], rates: Mapping[str, Any]) -> list[Download]:
    locked = locks.read(config["lock"])
    found = []
    asked = [(config["base"]["model"], config["base"]["revision"])] * (not Path(config["base"]["model"]).is_dir())
    for extractor in config["extractors"].values():
        if extractor["model"].startswith("hf-hub:"):
            asked.append((extractor["model"].removeprefix("hf-hub:"), extractor.get("revision")))
    for repository, revision in dict.fromkeys(asked):
        commit = locked["hub"].get(f"{repository}@{revision or 'main'}", {}).get("commit", revision)
        stated = locked["hub"].get(f"{repository}@{commit}", {}).get("files")
        rate = rates["models"].get(f"{repository}@{commit}", {})
        size = sum(file["bytes"] for file in stated.values()) if stated else rate.get("bytes")
        found.append(Download(f"hf://{repository}", commit, size, bool(stated) or rate.get("exact", False)))
    for url in (config["pictures"]["archive"] or {}).values():
        entry, rate = locked["files"].get(url), rates["files"].get(url, {})
        size = entry["bytes"] if entry else rate.get("bytes")
        found.append(Download(url, entry and f"sha256:{entry['sha256']}", size, bool(entry)))
    if dataset := config["pictures"]["dataset"]:
        found.append(Download(f"hf://datasets/{dataset['id']}", dataset["revision"], None, False))
    return found


def text(found: Estimate) -> str:
    """The estimate as Markdown, for a terminal and for a file."""
    how = "measured" if found.measured else "ASSUMED, not measured on such a device yet"
    lines = [
        f"# What {found.study} costs",
        "",
        f"{found.artists} artists, {found.loras:,} LoRAs, {found.pictures:,} pictures at most, "
        f"{found.generated:,} generated pictures{_with(found.variants)}.",
        "",
        "| to download | revision | bytes |",
        "|---|---|---:|",
    ]
    for each in found.downloads:
        size = "unknown" if each.bytes is None else f"{'' if each.exact else '≈ '}{_bytes(each.bytes)}"
        lines.append(f"| {each.name} | {each.revision or 'found and locked by the first fetch'} | {size} |")
    lines += [] if found.downloads else ["| nothing | | |"]
    lines += ["", "| on disk | bytes |", "|---|---:|"]
    lines += [f"| {stage} | {_bytes(size)} |" for stage, size in found.disk.items()]
    lines += [f"| **together** | **{_bytes(sum(found.disk.values()))}** |", "", "| stage | hours |", "|---|---:|"]
    lines += [f"| {stage} | {hours:,.2f} |" for stage, hours in found.hours.items()]
    lines += [f"| **together** | **{sum(found.hours.values()):,.2f}** |", ""]
    lines += [f"Hours of one device; rates {how}: {found.rates}."]
    return "\n".join(lines) + "\n"


def _with(number: int) -> str:
    return "" if not number else f", those of {number} variant{'s' if number > 1 else ''} among them"


def _bytes(size: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:,.1f} {unit}"
    return f"{size} B"


def write(config: Mapping[str, Any], rates: str | Path, path: str | Path) -> str:
    """Write the estimate to `path` (Markdown) and, as JSON, beside it; returns the text."""
    found = estimate(config, yaml.safe_load(Path(rates).read_text()))
    for place, content in (
        (Path(path), text(found)),
        (Path(path).with_suffix(".json"), json.dumps(asdict(found), indent=1)),
    ):
        with replacing(place) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return text(found)
