"""What the keys of a LoRA file mean: which module each part belongs to, and how the parts make up its update.

A key is a module's name, in one of many conventions (``names``), and the name of a part, in one of the spellings of
the kinds of updates (``kinds``). The parts that a module has decide its kind:

    A, B                    LoRA       s·BA; LoCon where A has a kernel
    A, B, mid               Tucker     s·B(mid ×₂ A), as in LyCORIS' LoCon
    w1_a … w2_b, t1, t2     LoHa       s·(w1a w1b) ∘ (w2a w2b)                Hyeon-Woo et al. 2022, arXiv 2108.06098
    lokr_w1 …, lokr_w2 …    LoKr       s·(w1 ⊗ w2); both whole: s = 1         Yeh et al. 2024, arXiv 2309.14859
    diff, diff_b            full       the difference itself, of a weight or a bias
    … and magnitude         DoRA       needs the base weight                  Liu et al. 2024, arXiv 2402.09353

s = α/r (α/√r for rsLoRA); a missing α, or kohya's α = 0, means s = 1. A file is read only if every key is understood
and every update is whole: the error lists all that is not.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from ..labels import printable
from .container import Container, Entry, LoraFileError
from .families import CLAIMING, claimed
from .families.sd import positional
from .families.spelling import Place
from .kinds import SPELLINGS, Kind, kind_of, problem
from .names import located

_END = {name: re.compile(rf"(?P<module>.+?)\.{pattern}") for name, pattern in {
    **SPELLINGS,
    "alpha": r"alpha",
    "bias": r"(diff_b|b_norm)",
    "B_bias": r"(lora_B(\.[\w-]+)?\.bias|lora_up\.bias|lora\.up\.bias)",
}.items()}  # fmt: skip
_PROCESSOR = re.compile(
    r"(?P<module>.+)\.(?P<hold>processor|self_attn)\.to_(?P<to>q|k|v|out)_lora\.(?P<way>down|up)\.weight"
)
_XLABS = re.compile(r"(?P<module>.+\.processor\.(qkv|proj)_lora[12]?)\.(?P<way>down|up)\.weight")
_NUMBERED = re.compile(r"(?P<model>unet|text_encoder):(?P<number>\d{1,4}):(?P<way>down|up)")
# Tokens learnt beside a LoRA: no update of a weight, and no reason to refuse the updates.
_TOKENS = re.compile(r"bundle_emb\..+|emb_params|clip_[lg]|t5xxl")
_FOREIGN = (  # what else is met, and why it cannot be an update by itself
    (r".+\.[ob]?oft_\w+(\.weight)?", "OFT turns the base's weights: the update needs the base"),
    (r".+\.([ab][12]|bm[12]|c[12])(\.weight)?", "GLoRA scales the base's weights: the update needs the base"),
    (r".+\.(on_input|ia3_l.*)", "IA³ scales the base's weights: the update needs the base"),
    (r".+\.vera_.*", "VeRA's matrices are not in the file"),
)
# Where a header may state α: diffusers' JSON, or a number by itself.
_HEADER_SCALES = {"lora_adapter_metadata", "ss_network_alpha"} | {
    f"{model}{name}" for model in ("", "transformer.", "unet.", "text_encoder.") for name in ("lora_alpha", "alpha")
}
_OUT_OF_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # of PEFT's init_lora_weights
_WAY = {"down": "A", "up": "B"}
# DiffSynth-Studio, which PEFT's ".default." shows, trains MiniMax-H3 as it was published: queries, keys and values head
# by head, of 128 each. Everybody else puts them together first (diffusers, `_convert_non_diffusers_minimax_h3_lora`).
_ALTERNATING, _HEAD = ".attn.qkv_proj", 128


@dataclass(frozen=True)
class Spec:
    """How to read one module's update from a file: part → key, and what is done with them.

    `shape` (out, in) of ΔW; `rows`: of a fused layer's; `swapped`: its halves stand in the other order; `heads`:
    its rows alternate head by head, as in `Place`; `scale`: from a configuration beside the tensors, where α is none of
    them.
    """

    module: str
    kind: str
    keys: Mapping[str, str]
    shape: tuple[int, int]
    rank: int
    rows: tuple[int, int] | None = None
    swapped: bool = False
    scale: float | None = None
    heads: int = 0


@dataclass(frozen=True)
class Layout:
    """All that a file's header tells: module → Spec, sorted; the naming convention; keys of learnt tokens."""

    specs: Mapping[str, Spec]
    naming: str
    tokens: tuple[str, ...] = ()


@dataclass
class _Found:
    """Parts by the module as the file names it, and everything that is wrong."""

    places: dict[str, Place] = field(default_factory=dict)
    parts: dict[str, dict[str, str]] = field(default_factory=dict)
    tokens: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def layout(container: Container, config: Mapping[str, Any] | None = None) -> Layout:
    """What the file's tensors are, from names and shapes alone; raises LoraFileError that lists all that is wrong.

    `config`: the adapter_config.json beside the file, where there is one.
    """
    if config is None and not _HEADER_SCALES & set(container.metadata):
        said = {key: value for key, value in container.metadata.items() if key in CLAIMING or value == "<embed>"}
        shapes = tuple((key, entry.shape) for key, entry in container.entries.items())
        found, wrong = _alike(shapes, tuple(sorted(said.items())))
    else:
        found, wrong = _understood(container, config)
    if wrong:
        raise LoraFileError(f"{container.path}: not a LoRA that can be read here:\n  " + "\n  ".join(wrong))
    return found


@lru_cache(maxsize=32)
def _alike(
    shapes: tuple[tuple[str, tuple[int, ...]], ...], said: tuple[tuple[str, str], ...]
) -> tuple[Layout, list[str]]:
    """`_understood` of names and shapes, and of what a header says of the base and of tokens: once for all files of one
    trainer and one setting."""
    entries = {key: Entry(shape, "F32", 0, 0) for key, shape in shapes}
    return _understood(Container(Path(), entries, dict(said)), None)


def _understood(container: Container, config: Mapping[str, Any] | None) -> tuple[Layout, list[str]]:
    """The layout, and everything that is wrong."""
    found = _sorted_keys(container)
    scales = _scales(container, config)
    specs: dict[str, Spec] = {}
    for name, parts in sorted(found.parts.items()):
        for spec in _specs(container, name, parts, found.places[name], scales, found.wrong):
            if spec.module in specs:
                found.wrong.append(f"{printable(name)}: a second update of {spec.module}")
            specs[spec.module] = spec
    if not specs and not found.wrong:
        found.wrong.append("no tensors" if not container.entries else "no update of a weight")
    namings = sorted({place.naming for place in found.places.values()})
    if namings == ["kohya", "kohya-sgm"]:  # its text encoder has one spelling only
        namings = ["kohya-sgm"]
    return Layout(_named_models(specs), "+".join(namings), tuple(found.tokens)), sorted(found.wrong)


# --- keys


def _sorted_keys(container: Container) -> _Found:
    found = _Found()
    at = _positions(container)
    places = _located(container)
    for key in sorted(container.entries):
        if match := _NUMBERED.fullmatch(key):
            if at is None:
                found.wrong.append(f"{key}: numbered modules, not as many as a Stable Diffusion 1 or 2 has")
                continue
            name = at(match["model"], int(match["number"]))
            _put(found, key, name, _WAY[match["way"]], Place((name,), "cloneofsimo"))
        elif _TOKENS.fullmatch(key) or container.metadata.get(key) == "<embed>":
            found.tokens.append(key)
        else:
            _put_named(found, key, places)
    return found


def _positions(container: Container) -> Callable[[str, int], str] | None:
    """Names of modules by their numbers, where a file has all of them."""
    sides: dict[str, dict[int, dict[str, tuple[int, ...]]]] = {}
    for key, entry in container.entries.items():
        if match := _NUMBERED.fullmatch(key):
            sides.setdefault(match["model"], {}).setdefault(int(match["number"]), {})[match["way"]] = entry.shape
    shapes: dict[str, list[tuple[int, int]]] = {}
    for model, pairs in sides.items():
        if set(pairs) != set(range(len(pairs))):
            return None
        for _, pair in sorted(pairs.items()):
            up, down = pair.get("up", ()), pair.get("down", ())
            shapes.setdefault(model, []).append((up[0] if up else 0, math.prod(down[1:]) if down else 0))
    return positional(shapes) if shapes else None


def _located(container: Container) -> dict[str, Place | None]:
    """Where each module that a key names belongs; all of them together, by their names and shapes."""
    parts: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, entry in container.entries.items():
        name, part, _ = _split(key)
        if name:
            parts.setdefault(name, {})[part] = entry.shape
    places = located({name: _shape(each) for name, each in parts.items()}, claimed(container.metadata))
    if any(".lora_A.default." in key for key in container.entries):
        for name, where in places.items():
            if where and name.endswith(_ALTERNATING) and where.rows and not where.rows[0] % _HEAD:
                places[name] = replace(where, heads=_HEAD)
    return places


def _shape(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
    """(out, in) of an update by the shapes of its parts; None where they make none."""
    own = {part: shape for part, shape in shapes.items() if part not in ("alpha", "bias", "B_bias")}
    if not own:
        return None
    kind = kind_of(own)
    return None if problem(kind, dict.fromkeys(own, ""), own) else kind.shape(own)


def _put_named(found: _Found, key: str, places: Mapping[str, Place | None]) -> None:
    name, part, naming = _split(key)
    where = places[name] if name else None
    if where is None:
        reason = next((why for pattern, why in _FOREIGN if re.fullmatch(pattern, key)), None)
        found.wrong.append(f"{printable(key)}: {reason or 'not a key of a format that is known here'}")
        return
    if naming:
        where = replace(where, naming=naming)
    _put(found, key, name, part, where)


def _split(key: str) -> tuple[str, str, str | None]:
    """Module's name, part, and the convention where the part shows it; an empty name where there is no known part."""
    if match := _PROCESSOR.fullmatch(key):
        to = match["to"]
        leaf = f"{to}_proj" if match["hold"] == "self_attn" else "to_out.0" if to == "out" else f"to_{to}"
        kept = f"{match['module']}.self_attn" if match["hold"] == "self_attn" else match["module"]
        return f"{kept}.{leaf}", _WAY[match["way"]], "diffusers-processor"
    if match := _XLABS.fullmatch(key):
        return match["module"], _WAY[match["way"]], "xlabs"
    for part, pattern in _END.items():
        if match := pattern.fullmatch(key):
            return match["module"], part, None
    return "", "", None


def _put(found: _Found, key: str, name: str, part: str, where: Place) -> None:
    parts = found.parts.setdefault(name, {})
    found.places.setdefault(name, where)
    if part in parts:
        found.wrong.append(f"{printable(key)}: a second {part} of {printable(name)}")
    parts[part] = key


def _named_models(specs: Mapping[str, Spec]) -> dict[str, Spec]:
    """Specs by module, the text encoders distinguished where the file does not: by width (SDXL's second has 1280), and
    FLUX's T5, which some call the third, is its second."""
    widths = {spec.shape[1] for module, spec in specs.items() if re.match(r"text_encoder\..*\.self_attn\.", module)}
    moved = {"text_encoder": "text_encoder_2"} if widths == {1280} else {}
    if any(module.startswith("transformer.single_transformer_blocks.") for module in specs):
        moved["text_encoder_3"] = "text_encoder_2"
    named = {}
    for module, spec in specs.items():
        model, _, rest = module.partition(".")
        module = f"{moved.get(model, model)}.{rest}"
        named[module] = replace(spec, module=module)
    return dict(sorted(named.items())) if len(named) == len(specs) else dict(sorted(specs.items()))


# --- scales that stand beside the tensors


def _scales(container: Container, config: Mapping[str, Any] | None) -> Mapping[str, Mapping[str, Any]]:
    """Model ("" for all) → its PEFT configuration: that of the folder, of diffusers' header, or the α of a header."""
    if config is not None:
        return {"": config}
    text = container.metadata.get("lora_adapter_metadata")
    if not text:
        return _header_scales(container)
    try:
        flat = json.loads(text)
        if not isinstance(flat, dict):
            raise ValueError("not a mapping")
    except (ValueError, RecursionError):
        raise LoraFileError(
            f"{container.path}: the header's lora_adapter_metadata is not JSON, and it would hold the scale"
        ) from None
    found: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        model, dot, name = key.partition(".")
        if dot:
            found.setdefault(model, {})[name] = value
    return found


def _header_scales(container: Container) -> Mapping[str, Mapping[str, Any]]:
    """α that stands in the header alone, as some trainers and converters leave it: of all modules, or of a model."""
    found: dict[str, dict[str, Any]] = {}
    for key in sorted(_HEADER_SCALES & set(container.metadata)):
        model, _, _ = key.rpartition(".")
        if container.metadata[key] in ("", "None", "null"):  # kohya's scripts write what was not set so
            continue
        try:
            value = float(container.metadata[key])
        except ValueError:
            raise LoraFileError(
                f"{container.path}: the header's {key} is no number ({printable(container.metadata[key])[:40]!r}), and "
                "it would hold the scale"
            ) from None
        found.setdefault(model, {}).setdefault("lora_alpha", value)
    return found


def _taken_from_the_base(config: Mapping[str, Any]) -> str | None:
    """Why a PEFT configuration says that BA is not what training changed; None where it is."""
    start = str(config.get("init_lora_weights"))
    if start.startswith(_OUT_OF_THE_BASE):
        return (
            f"its A and B began as a part of the base's own weights (init_lora_weights {printable(start)[:20]!r}), and "
            "BA alone is mostly that; save it by PEFT's save_pretrained(…, path_initial_model_for_weight_conversion=…)"
        )
    if config.get("target_parameters"):
        return "it has updates of parameters of several experts (target_parameters), which one matrix would mix"
    if config.get("use_bdlora"):
        return "its factors are block-diagonal (use_bdlora), and the file does not say how"
    return None


def _config_scale(
    container: Container, module: str, own: str, kind: Kind, rank: int, scales: Mapping[str, Mapping[str, Any]]
) -> float | None:
    """s = α/r or α/√r as a PEFT configuration says; None where there is none for this model. Its patterns are of the
    names that the file itself gives to modules, `own`."""
    model, _, _ = module.partition(".")
    config = scales.get(model, scales.get(""))
    if config is None:
        return None
    if why := _taken_from_the_base(config):
        raise LoraFileError(f"{container.path}: {why}")
    name = own.removeprefix("base_model.model.").removeprefix(f"{model}.")
    alpha = _configured(container, config, "alpha_pattern", name, config.get("lora_alpha", config.get("alpha")))
    if kind.hidden_rank:
        rank = _configured(container, config, "rank_pattern", name, config.get("r", rank))
    if alpha is None:
        return None
    sound = all(isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v <= 1e6 for v in (alpha, rank))
    if not sound or not rank:
        raise LoraFileError(
            f"{container.path}: the scale of {module} is no sound number: α {alpha!r:.40}, r {rank!r:.40}"
        )
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _configured(container: Container, config: Mapping[str, Any], patterns: str, name: str, default: Any) -> Any:
    """The value of the first of PEFT's patterns that ends the module's name, or the default."""
    found = config.get(patterns) or {}
    if not isinstance(found, Mapping):
        raise LoraFileError(
            f"{container.path}: {patterns} of its configuration is no mapping: {printable(str(found))[:80]}"
        )
    for pattern, value in found.items():
        # A foreign regular expression can run for ever; what PEFT and diffusers write is names, ".*" and "\\d+".
        tokens = re.findall(r"\\\.|\.\*|\\d\+|[\w.]|.", pattern.removeprefix("^").removesuffix("$"), re.DOTALL)
        if (
            len(pattern) > 300
            or any(len(t) == 1 and not re.match(r"[\w.]", t) for t in tokens)
            or tokens.count(".*") > 3
        ):
            raise LoraFileError(
                f"{container.path}: {patterns} has a pattern that is not read here: {printable(pattern)[:80]!r}"
            )
        # As PEFT: at the name's end, after a dot or at its beginning; with "^" at its beginning alone.
        before = "" if pattern.startswith("^") else r"(?:.*\.)?"
        if re.fullmatch(before + "".join(re.escape(t) if len(t) == 1 else t for t in tokens), name):
            return value
    return default


# --- shapes


def _specs(
    container: Container, name: str, parts: Mapping[str, str], where: Place,
    scales: Mapping[str, Mapping[str, Any]], wrong: list[str],
) -> Iterator[Spec]:  # fmt: skip
    """The specs of one named module: its weight's, its bias's, or those of the modules that it fuses."""
    parts = dict(parts)
    shapes = {part: container.entries[key].shape for part, key in parts.items()}
    said = printable(name)
    bias, of_pair = parts.pop("bias", None), parts.pop("B_bias", None)
    if bias is not None:
        yield from _bias(container, Spec("", "bias", {"diff": bias}, (0, 1), 1), where, wrong)
        if not parts and of_pair is None:
            return
    if "alpha" in parts and math.prod(shapes["alpha"]) != 1:
        wrong.append(f"{printable(parts['alpha'])}: not one number")
        return
    kind = kind_of(parts)
    if found := problem(kind, parts, shapes):
        wrong.append(f"{said}: {found}")
        return
    shape, rank = kind.shape(shapes), kind.rank(shapes)
    if min(shape) < 1:
        wrong.append(f"{said}: of size zero")
        return
    spec = Spec(where.modules[0], kind.name, parts, shape, rank, swapped=where.swapped)
    if "alpha" not in parts:
        spec = replace(spec, scale=_config_scale(container, where.modules[0], name, kind, rank, scales))
    if of_pair is not None:  # of the layer B, so of its scale
        keys = {"diff": of_pair, **({"alpha": parts["alpha"]} if "alpha" in parts else {})}
        yield from _bias(container, Spec("", "bias", keys, (0, 1), rank, scale=spec.scale), where, wrong)
    if where.rows is None:
        if where.swapped and shape[0] % 2:
            wrong.append(f"{said}: {shape[0]} rows have no two halves")
            return
        yield spec
        return
    cuts = _cuts(where.rows, shape)
    if cuts is None or kind.relative:
        wrong.append(f"{said}: {shape[0]} × {shape[1]} is not the fused layer of {', '.join(where.modules)}")
        return
    for module, rows in zip(where.modules, cuts, strict=True):
        yield replace(spec, module=module, shape=(rows[1] - rows[0], shape[1]), rows=rows, heads=where.heads)


def _cuts(rows: tuple[int, ...], shape: tuple[int, int]) -> list[tuple[int, int]] | None:
    """Where the rows of a fused layer are cut; None where it is not of this shape."""
    stops = list(accumulate(rows))
    return list(zip([0, *stops[:-1]], stops, strict=True)) if stops and stops[-1] == shape[0] else None


def _bias(container: Container, spec: Spec, where: Place, wrong: list[str]) -> Iterator[Spec]:
    """A bias is a matrix of one column; that of a fused layer has no name of its own."""
    key = spec.keys["diff"]
    shape = container.entries[key].shape
    if len(where.modules) > 1 or len(shape) != 1 or shape[0] < 1 + where.swapped or (where.swapped and shape[0] % 2):
        wrong.append(f"{printable(key)}: not the bias of one module")
        return
    yield replace(spec, module=f"{where.modules[0]}.bias", shape=(shape[0], 1), swapped=where.swapped)
