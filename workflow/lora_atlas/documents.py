"""docs/tables.md, config.md and formats.md, from schemas and registries: `python -m lora_atlas.documents FOLDER` writes
all.

Tables are what `tables` declares, with a few words for every column; keys are those of config.yaml, with the comment
that stands beside each and what the schema allows.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from . import schema as schemas
from . import tables
from .code import PROJECT
from .loras.kinds import catalog

# Column → what it holds; "table.column" where it holds something else in one table.
COLUMNS = {
    "picture": "SHA-256 of its bytes; path:… of its name where there are none",
    "attributions.picture": "name of its file; null: of all pictures of the query together",
    "artist": "artist, as in folder names",
    "genre": "genre, where the source has one",
    "image": "its bytes, and its name in the source",
    "width": "pixels, of the original",
    "height": "pixels, of the original",
    "source": "where it came from",
    "subject": "what it shows, where the source says so; one spelling for all artists",
    "licence": "licence, as the source says it",
    "status": "kept or refused",
    "loras.status": "imported or refused",
    "query.status": "answered or refused",
    "attributions.status": "answered or refused",
    "reason": "why it was refused",
    "duplicates.reason": "in words, which picture it is like",
    "other": "the picture that is used in its place",
    "other_artist": "the artist of that picture",
    "distance": "L2, cosine or CSLS",
    "duplicates.distance": "differing bits of the perceptual hashes",
    "neighbours.distance": "√(2 − 2 cosine): between updates at norm one",
    "query.distance": "√(2 − 2 cosine): between updates at norm one",
    "correlation": "of the structures of both pictures",
    "lora": "artist/number; of a folder, the name of the file",
    "split": "gallery or query",
    "seed": "derived seed of its training",
    "generated.seed": "the picture's number, which its noise is derived from",
    "pictures": "the pictures that it is trained on",
    "worth.pictures": "how many pictures",
    "attribution.pictures": "how many pictures of each query; null: all that it was trained on",
    "attribution_queries.pictures": "how many pictures of the query; null: all that it was trained on",
    "attribution_ways.pictures": "1, or null: all of the query, or all that the LoRA generated",
    "attribution_way_queries.pictures": "1, or null: all of the query, or all that the LoRA generated",
    "attributions.pictures": "how many pictures were asked about together",
    "worth_queries.pictures": "how many pictures",
    "overlap": "largest share of its pictures that another LoRA of its side has too",
    "step": "optimiser step",
    "loss": "mean over the steps since the last logged one",
    "attributions.loss": "mean loss of the pictures under the base",
    "gradient_norm": "mean over the same steps, before clipping",
    "seconds": "a LoRA's share of the clock since the last logged step",
    "worth.seconds": "processor seconds of so many pictures and their features",
    "crossings.seconds": "seconds of as many pictures as the crossing needs",
    "cost.seconds": "seconds of the job",
    "prompt": "prompt",
    "vector": "float32",
    "scenario": "together · known artist · unseen artist · whole · whole, unseen artist",
    "attribution.scenario": "whole · whole, unseen artist · absent artist: without the LoRAs of the query's artist",
    "attribution_queries.scenario": "whole · whole, unseen artist · absent artist: without its artist's LoRAs",
    "attribution.modules": "plain, or how they are weighted",
    "attribution_queries.modules": "plain, or how they are weighted",
    "claim": "what is claimed",
    "sentence": "the same in the words of FINDINGS.md",
    "verdict": "held · did not hold · undecided",
    "numbers": "what the verdict rests on, in words",
    "claims.p": "two-sided, corrected for all claims of the page together",
    "seeds": "how many seeds it is of",
    "artists": "how many artists the gallery has",
    "law": "the same by the law that is fitted (metrics/crowd.py); of more artists than the study has, its forecast",
    "separation": "the law's d: how far the right artist stands out, in standard deviations of the others",
    "spread": "the law's s: the standard deviation of that over queries",
    "way": "samples · caption · the base's metric · loss under each LoRA, as it is or less its mean, and one gradient "
    "of the same samples and pictures · generated pictures",
    "setting": "how many, which, or of what",
    "centring": "what is less its mean: none · LoRAs · LoRAs and gradients, by the base's own pictures or others'",
    "prominence": "how far the LoRA stands out of all, in median absolute distances from the median",
    "calibration": "none, rescale, lzw, crossfit or split",
    "fold": "vectors of one fold are comparable",
    "grid.calibration": "the same, or whole: no basis",
    "descriptor": "name of the descriptor",
    "level": "artist or genre",
    "clustering.level": "artist, genre, or artist in genre",
    "structure.level": "LoRAs, artists, or within artists",
    "algorithm": "clustering algorithm",
    "differences.algorithm": "clustering algorithm; null: retrieval",
    "metric": "name of the measure",
    "value": "its value; null where it is not defined",
    "queries.value": "its value",
    "worth_queries.value": "its value",
    "attribution_queries.value": "its value",
    "attribution_way_queries.value": "its value",
    "crossings.value": "how many pictures; null: more than there are",
    "low": "lower end of the interval over artists",
    "high": "upper end of the interval over artists",
    "chance": "expectation of the value if labels meant nothing",
    "neighbours.artist": "of the neighbour, as in folder names",
    "neighbours.genre": "of the neighbour, where there are folders of genres",
    "query.artist": "of the known LoRA, as in folder names",
    "query.genre": "of the known LoRA, where there are folders of genres",
    "query.chance": "cosine up to which the nearest is no nearer than that of an unrelated LoRA; null: too few to tell",
    "queries": "how many queries were asked",
    "bases.left": "a study",
    "bases.right": "a study on another base",
    "bases.replicate": "the variant that is another seed of both studies; own seed: the studies themselves",
    "bases.level": "LoRAs, artists, or within artists",
    "bases.null": "mean where LoRAs, or artists of one base, are renamed at random",
    "left": "a descriptor",
    "right": "another descriptor",
    "null": "mean under permutation",
    "null_high": "upper end of the values under permutation",
    "p": "(1 + permutations that reach the value) / (1 + permutations), one-sided",
    "neighbours.p": "of an unrelated LoRA being as near, corrected for having looked at all (docs/method.md)",
    "attributions.p": "of the base's own pictures speaking as much for any LoRA, corrected for having looked at all",
    "query.p": "of an unrelated LoRA being as near, corrected for having looked at all (docs/method.md)",
    "component": "self_attention, cross_attention, feed_forward …; all",
    "drift.component": "number of the principal component",
    "block": "down, mid or up; a block by its index, such as up_blocks.1; one module; all",
    "factor": "A, B, both, or delta",
    "parameters": "how many numbers",
    "share": "of all parameters of the factor",
    "module_weights.share": "of the squared norms of all LoRAs, as they are",
    "weighted_share": "of the squared norms of all LoRAs, as they are weighted",
    "matched": "mean over random parts of as many parameters",
    "matched_low": "lower end over random parts",
    "matched_high": "upper end over random parts",
    "dimensions": "principal components; as many as LoRAs: no basis",
    "whitening": "none, or full: components have unit variance",
    "remark": "default, best, or both",
    "loras.remark": "what is unusual about the file",
    "reference": "the descriptor of the weights",
    "most": "how many pictures there are",
    "never": "share of resamplings in which so many are not enough",
    "reference_value": "its score",
    "reference_seconds": "seconds of reading one LoRA",
    "control": "permuted labels: those of the gallery's artists",
    "expected": "chance by formula",
    "observed": "score with the true labels",
    "explained": "share of the variance",
    "held_out": "the same ratio of left-out gallery LoRAs",
    "predicted": "the same in closed form",
    "file": "path below the folder of LoRA files",
    "sha256": "of the file",
    "bytes": "of the file",
    "format": "spelling of its keys",
    "kinds": "of its updates, as docs/formats.md spells them: LoRA, LoHa, LoKr, DoRA …",
    "family": "base, from shapes and names",
    "header_family": "base, as the header says",
    "space": "LoRAs of one space are comparable",
    "modules": "how many",
    "ranks": "those that occur",
    "components": "norm of the update in each component",
    "norm": "Frobenius norm of ΔW",
    "zero_share": "share of modules whose update is zero",
    "tokens": "learnt tokens, which are left out",
    "copy_of": "the nearest LoRA before it that this is a copy of, or nearly (relation)",
    "relation": "same bytes; same update (rounding explains the difference) or nearly the same, or a multiple",
    "rank": "1: the nearest",
    "neighbour": "a LoRA",
    "cosine": "of the two updates, their modules weighted where the space has a consensus",
    "query": "the file that was asked about",
    "attributions.query": "the picture, or the folder of pictures, that was asked about",
    "attributions.sha256": "of the picture's file",
    "artist_vote": "the artist whom most of the evidence of the first five is for; null: none is beyond chance",
    "artist_share": "of that evidence, which is by how much each of them is beyond chance",
    "genre_vote": "the same of genres",
    "genre_share": "the same of genres",
    "kernel": "delta, down, up or factors",
    "weighting": "gradient, consensus, plain or learnt",
    "module": "name of the layer",
    "weight": "how much it counts, the largest at one",
    "stage": "train, generate, features, gram, base, attribution or inventory",
    "item": "what the job was of",
    "count": "LoRAs or pictures that it handled",
    "device": "cpu or cuda; both, where parts of the job were made on either",
}


def tables_page() -> str:
    """docs/tables.md; raises KeyError for a column that nothing is said of."""
    lines = [
        "# Tables",
        "",
        f"Parquet, version {tables.VERSION} of the schemas in `workflow/lora_atlas/tables.py`, which this page is made "
        "from (`make docs`). A column that may be null is marked with a question mark. A value without an interval has "
        "`low` and `high` null; a forecast of `crowd` has an interval and no value. Not-a-number does not occur.",
    ]
    for name, schema in tables.SCHEMAS.items():
        about = tables.ABOUT[name]
        lines += [
            "",
            f"## {name}",
            "",
            f"{about[0].upper()}{about[1:]}.",
            "",
            "| column | type | |",
            "| --- | --- | --- |",
        ]
        for field in schema:
            words = COLUMNS.get(f"{name}.{field.name}") or COLUMNS[field.name]
            lines.append(f"| `{field.name}`{'?' * field.nullable} | {_type(field.type)} | {words} |")
    return "\n".join(lines) + "\n"


def _type(of: pa.DataType) -> str:
    if pa.types.is_list(of):
        return f"list of {_type(of.value_type)}"
    if pa.types.is_struct(of):
        return "{" + ", ".join(f"{field.name}: {_type(field.type)}" for field in of) + "}"
    return {"string": "text", "double": "number", "float": "float32", "int64": "integer", "binary": "bytes"}[str(of)]


def config_page(project: Path = PROJECT) -> str:
    """docs/config.md, from config.yaml's keys, defaults and comments, and from the schema's types."""
    text = (project / "config.yaml").read_text(encoding="utf-8")
    schema = schemas.read(project / "workflow/schemas/config.schema.yaml")
    said = _comments(text)
    lines = [
        "# Configuration",
        "",
        "Every key, its default in [config.yaml](../config.yaml), and what it may be. This page is made from that file "
        "and from `workflow/schemas/config.schema.yaml` (`make docs`). A study is a file of the keys that differ.",
        "",
        "| key | default | allowed | |",
        "| --- | --- | --- | --- |",
    ]
    for key, value, of in _keys(yaml.safe_load(text), schema, schema):
        lines.append(f"| `{key}` | {_value(value)} | {_allowed(of)} | {said.get(key, '').replace('|', '·')} |")
    return "\n".join(lines) + "\n"


def _keys(config: Mapping[str, Any], schema: Mapping[str, Any], root: Mapping[str, Any], place: str = "") -> Iterator:
    """Key with dots, default, schema; sections open up."""
    for key, value in config.items():
        of = schema.get("properties", {}).get(key, schema.get("additionalProperties", {}))
        while isinstance(of, dict) and "$ref" in of:
            of = root["$defs"][of["$ref"].rsplit("/", 1)[1]]
        of = of if isinstance(of, dict) else {}
        each = of.get("additionalProperties")
        if isinstance(each, dict) and value:  # names are the study's own
            yield f"{place}{key}", value, of
            for inner, allowed in each["properties"].items():
                yield f"{place}{key}.NAME.{inner}", None, allowed
        elif isinstance(value, dict) and value:
            yield from _keys(value, of, root, f"{place}{key}.")
        else:
            yield f"{place}{key}", value, of


def _value(value: Any) -> str:
    shown = yaml.safe_dump(value, default_flow_style=True, width=10_000).strip().removesuffix("\n...").strip()
    return f"`{shown}`" if len(shown) <= 60 else f"`{shown[:57]}…`"


def _allowed(of: Mapping[str, Any]) -> str:
    if "enum" in of:
        return ", ".join("null" if each is None else f"`{each}`" for each in of["enum"])
    if of.get("type") == "array" and "enum" in of.get("items", {}):
        return "of " + ", ".join(f"`{each}`" for each in of["items"]["enum"])
    types = of.get("type", "")
    types = [types] if isinstance(types, str) else types
    bounds = [(k, of[k]) for k in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum") if k in of]
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return " or ".join(types) + "".join(f" {signs[k]} {v}" for k, v in bounds)


def _comments(text: str) -> dict[str, str]:
    """Key with dots → the comment beside it, with lines of comment before it that belong to it."""
    found: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    before: list[str] = []
    last: str | None = None
    for line in text.splitlines():
        alone = re.match(r"^\s*# ?(.*)$", line)
        if alone:
            if last is not None and line.index("#") > 18:  # a comment that goes on below its key
                listed = "|" in found.get(last, "") and re.match(r"\w+: ", alone[1])
                found[last] = f"{found.get(last, '')}{' | ' * bool(listed) or ' '}{alone[1]}".strip()
            else:
                before.append(alone[1])
            continue
        key = re.match(r"^(\s*)([A-Za-z_0-9]+):", line)
        if not key:
            before, last = ([], None) if not line.strip() else (before, last)
            continue
        while stack and stack[-1][0] >= len(key[1]):
            stack.pop()
        stack.append((len(key[1]), key[2]))
        last = ".".join(name for _, name in stack)
        comment = re.search(r"\s#\s+(.*)$", line)
        words = [" ".join(before)] if before and len(stack) > 1 else []
        if words and stack[-2][1] == "extractors":  # said of all of them
            of_all = [found[stack[-2][1]]] if found.get(stack[-2][1]) else []
            found[stack[-2][1]], words = ". ".join([*of_all, words[0]]), []
        found[last] = " ".join([*words, *([comment[1]] if comment else [])]).strip()
        before = []
    return found


_READING = {
    catalog.EXACTLY: """## Read exactly

ΔW follows from the file.""",
    catalog.WITH_BASE: """## Read with the base named

ΔW follows from the file and from the base's weights, or from their shapes: name a diffusers folder of the base in
`weights.base`. Without it such a file is refused with that reason.""",
    catalog.NOT: """## No update by itself

ΔW does not follow from what is saved. Such a file is refused with the reason.""",
}
_FORMATS = """# Kinds of adapters

What PEFT 0.21 and LyCORIS 4.1 save, and a few other trainers, is read as follows; W is the weight of the base, ΔW the
update, s = α/r where nothing else is said. Each row is held by tests in which the library makes and saves the
adapter and its own forward pass is the truth. This page is made from `workflow/lora_atlas/loras/kinds/catalog.py` by
`make docs`.

Beside its updates a file may hold learnt tokens and whole layers (classifier heads, norms, `modules_to_save`): they are
left out, and a remark says so. α stands in a tensor of its module, in adapter_config.json, or in the header; where
tensors and configuration say two scales, the tensors' is used, and a remark says so. kohya's `ss_network_alpha` is no
scale: beside it stand tensors of α, or a converter has put them into A and B. With `split_qkv` sd-scripts trains three
LoRAs of a fused layer and saves them as one of three times the rank beside the α of one, LyCORIS a DyLoRA beside an
α that is block_size times too small, and mflux trains at α/r where a target has an α, and does not save it: such files
are read, here as by every loader, at another strength than they were trained at.

Of 86 files that the networks of sd-scripts, musubi-tuner and OneTrainer themselves made (November 2026; models of 15
families at their released sizes, in every layout that OneTrainer saves; LoRA, convolutions, LoRA-FA, LoHa, LoKr), each
was found to be of its family, and Σ‖ΔW x‖² over its layers, x random, was that of the network's own layers to 10⁻⁴ or
better; the three that were trained with `split_qkv` are the exception above."""


def formats_page() -> str:
    """docs/formats.md: every kind of adapter, and what becomes of it."""
    lines = [_FORMATS]
    for reading, about in _READING.items():
        last = "why" if reading == catalog.NOT else "ΔW"
        lines += ["", about, "", f"| kind | saved by | {last} |", "| --- | --- | --- |"]
        lines += [
            f"| {each.name} | {each.library} | {each.words.replace('|', '·')} |"
            for each in catalog.ADAPTERS
            if each.reading == reading
        ]
    return "\n".join(lines) + "\n"


def write(folder: str | Path) -> None:
    """Write all pages into a folder."""
    Path(folder, "tables.md").write_text(tables_page(), encoding="utf-8")
    Path(folder, "config.md").write_text(config_page(), encoding="utf-8")
    Path(folder, "formats.md").write_text(formats_page(), encoding="utf-8")


if __name__ == "__main__":
    write(sys.argv[1])
