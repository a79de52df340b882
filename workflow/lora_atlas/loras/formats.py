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

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from . import scales
from .base import base_shape
from .container import Container, Entry, LoraFileError
from .families import CLAIMING, OTHER, belonging, claimed, text_encoder
from .families.sd import positional
from .families.spelling import Place
from .kinds import SHARED, SPELLINGS, Kind, kind_of, problem
from .kinds.catalog import FOREIGN
from .kinds.dora import DORA
from .kinds.lokr import LOKR, both_whole
from .kinds.lora import BLOCKS, EXPERTS, LORA
from .kinds.scalings import IA3, of_outputs
from .names import located
from .reasons import brief, listed, told

_END = {name: re.compile(rf"(?P<module>.+?)\.{pattern}") for name, pattern in {
    "alpha": r"alpha",
    "bias": r"(diff_b|b_norm)",
    "B_bias": r"(lora_B(\.[\w-]+)?\.bias|lora_up\.bias|lora\.up\.bias)",
    **SPELLINGS,
}.items()}  # fmt: skip
_PROCESSOR = re.compile(
    r"(?P<module>.+)\.(?P<hold>processor|self_attn)\.to_(?P<to>q|k|v|out)_lora\.(?P<way>down|up)\.weight"
)
_XLABS = re.compile(r"(?P<module>.+\.processor\.(qkv|proj)_lora[12]?)\.(?P<way>down|up)\.weight")
_NUMBERED = re.compile(r"(?P<model>unet|text_encoder):(?P<number>\d{1,4}):(?P<way>down|up)")
# What stands in a PEFT file once, for all its modules.
_SHARED = {part: re.compile(rf"(?:base_model\.)?{SPELLINGS[part]}") for part in sorted(SHARED)}
# A difference of Wan's modulation, which is a parameter by itself.
_MODULATION = re.compile(r"(?P<module>.+)\.diff_m")
# Tokens learnt beside a LoRA: no update of a weight, and no reason to refuse the updates.
_TOKENS = re.compile(r"bundle_emb\..+|emb_params|clip_[lg]|t5xxl")
# Whole layers saved beside a LoRA (classifier heads, norms, PEFT's modules_to_save and biases): values, not updates.
_WHOLE = re.compile(
    r".+\.(weight|bias|scale|gamma|beta|running_mean|running_var|num_batches_tracked|scale_shift_table|modulation"
    r"|embedding|embeddings|position_embedding|pos_embed|logit_scale|cls_token|class_embedding)"
)
# Of a key that may be a part of an update of a kind that is not known: never left out.
_ADAPTER = re.compile(
    r"lora|lycoris|loha|hada|lokr|dora|oft_|_oft|vera|glora|ia3|hira|hra_|miss_|c3a|adapter|magnitude|shira|delta|diff|bone|road",
    re.IGNORECASE,
)
_WAY = {"down": "A", "up": "B"}
# DiffSynth-Studio, which PEFT's ".default." shows, trains MiniMax-H3 as it was published: queries, keys and values head
# by head, of 128 each. Everybody else puts them together first (diffusers, `_convert_non_diffusers_minimax_h3_lora`).
_ALTERNATING, _HEAD = ".attn.qkv_proj", 128


@dataclass(frozen=True)
class Spec:
    """How to read one module's update from a file: part → key, and what is done with them.

    `shape` (out, in) of ΔW; `rows`: of a fused layer's; `swapped`: its halves stand in the other order; `heads`: its
    rows alternate head by head, as in `Place`; `scale`: from a configuration beside the tensors, where α is none of
    them; `layer`: (out, in) of the whole layer; `wants`: tensors of the base that its kind is relative to, one below
    the other; `settings`: of its configuration, for its kind.
    """

    module: str
    kind: str
    keys: Mapping[str, str]
    shape: tuple[int, int]
    rank: int
    rows: tuple[int, int] | None = None
    swapped: bool = False
    scale: float | None = None
    layer: tuple[int, int] = (0, 0)
    wants: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    heads: int = 0


@dataclass(frozen=True)
class Layout:
    """All that a file's header tells: module → Spec, sorted; the naming convention; keys of learnt tokens, and of whole
    layers that are left out; what is worth a remark."""

    specs: Mapping[str, Spec]
    naming: str
    tokens: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass
class _Found:
    """Parts by the module as the file names it, and everything that is wrong: pairs of a name and the reason."""

    places: dict[str, Place] = field(default_factory=dict)
    parts: dict[str, dict[str, str]] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    tokens: list[str] = field(default_factory=list)
    whole: list[str] = field(default_factory=list)
    wrong: list[tuple[str, str]] = field(default_factory=list)


def layout(container: Container, config: Mapping[str, Any] | None = None, base: str | None = None) -> Layout:
    """What the file's tensors are, from names and shapes alone; raises LoraFileError that says all that is wrong.

    `config`: the adapter_config.json beside the file, where there is one. `base`: a diffusers folder, for kinds that
    are relative to its weights, or are laid out by its shapes.
    """
    header = container.metadata
    if config is None and base is None:
        kept = {*scales.STATED, *CLAIMING}
        marks = {key: value for key, value in header.items() if value == "<embed>" or key in kept}
        marks |= {key: header[key] for key in ("ss_network_args",) if scales.root_of_rank(header)}
        shapes = tuple((key, entry.shape) for key, entry in container.entries.items())
        # What is raised is told with the file's own name, and not kept.
        found, wrong = _alike(shapes, tuple(sorted(marks.items()))) if _sound(container) else _understood(container)
    else:
        found, wrong = _understood(container, config, base)
    if wrong:
        raise LoraFileError(f"{container.path}: not a LoRA that can be read here:\n  " + "\n  ".join(told(wrong)))
    if said := _two_scales(container, found, config):
        return replace(found, remarks=(*found.remarks, said))
    return found


def _sound(container: Container) -> bool:
    """Whether the scales of a header can be read at all."""
    try:
        scales.configs(container, None)
    except LoraFileError:
        return False
    return True


@lru_cache(maxsize=32)
def _alike(
    shapes: tuple[tuple[str, tuple[int, ...]], ...], header: tuple[tuple[str, str], ...]
) -> tuple[Layout, list[tuple[str, str]]]:
    """`_understood` of names and shapes, and of what a header says of scales, of the base and of tokens: once for all
    files of one trainer and one setting."""
    entries = {key: Entry(shape, "F32", 0, 0) for key, shape in shapes}
    try:
        return _understood(Container(Path(), entries, dict(header)))
    except LoraFileError as error:
        return Layout({}, ""), [("", str(error).removeprefix(".: "))]


def _understood(
    container: Container, config: Mapping[str, Any] | None = None, base: str | None = None
) -> tuple[Layout, list[tuple[str, str]]]:
    """The layout, and everything that is wrong."""
    found = _sorted_keys(container)
    context = _Context(container, scales.configs(container, config), base, found.wrong)
    for name, parts in found.parts.items():
        kind = kind_of(parts)
        parts |= {part: key for part, key in found.shared.items() if part in kind.shared and part not in parts}
        if kind.shared:
            context.cut.setdefault(kind.name, set()).add((name.rpartition(".")[2], *_rows(container, parts)))
    specs: dict[str, Spec] = {}
    for name, parts in sorted(found.parts.items()):
        for spec in _specs(context, name, parts, found.places[name]):
            if spec.module in specs:
                found.wrong.append((name, f"a second update of {brief(spec.module)}"))
            specs[spec.module] = spec
    if not specs and not found.wrong:
        found.wrong.append(("", _nothing(container, found)))
    namings = sorted({place.naming for place in found.places.values()})
    if namings == ["kohya", "kohya-sgm"]:  # its text encoder has one spelling only
        namings = ["kohya-sgm"]
    named = _named_models(specs, container.metadata)
    remarks = _remarks(context, found)
    return Layout(named, "+".join(namings), tuple(found.tokens), tuple(found.whole), remarks), sorted(found.wrong)


def _nothing(container: Container, found: _Found) -> str:
    if not container.entries:
        return "no tensors"
    if found.whole:
        return f"no update of a weight: {len(found.whole):,} whole weights ({listed(found.whole)}), as a model has them"
    if found.shared:
        return f"{listed(found.shared.values())} alone, saved without what says which module has which of it"
    return "no update of a weight"


def _remarks(context: "_Context", found: _Found) -> tuple[str, ...]:
    said = []
    if found.whole:
        said.append(f"holds {len(found.whole):,} whole tensors besides, which are left out: {listed(found.whole)}")
    if any(config.get("alora_invocation_tokens") for config in context.configs.values()):
        said.append("an activated LoRA (aLoRA): it acts only after its invocation tokens, and is compared as if always")
    return tuple(said)


def _two_scales(container: Container, found: Layout, config: Mapping[str, Any] | None) -> str | None:
    """A word on a configuration that says another scale than α among the tensors does."""
    if config is None and not scales.STATED & set(container.metadata):
        return None
    configs = scales.configs(container, config)
    differ = 0
    first = ""
    for module, spec in found.specs.items():
        its = scales.of_model(configs, module)
        if "alpha" not in spec.keys or its is None:
            continue
        said = scales.of_config(container, module, module, LORA, spec.rank, its)
        alpha = float(container.read(spec.keys["alpha"]).item())
        if said is not None and abs(said - alpha / spec.rank) > 1e-3 * abs(said):
            differ += 1
            first = first or f"{said:g} for {alpha / spec.rank:g} at {brief(module)}"
    if not differ:
        return None
    return f"its configuration says another scale than its α do, which are used, in {differ:,} modules ({first})"


# --- keys


def _sorted_keys(container: Container) -> _Found:
    found = _Found()
    at = _positions(container)
    places = _located(container)
    for key in sorted(container.entries):
        if match := _NUMBERED.fullmatch(key):
            if at is None:
                found.wrong.append((key, "numbered modules, not as many as a Stable Diffusion 1 or 2 has"))
                continue
            name = at(match["model"], int(match["number"]))
            _put(found, key, name, _WAY[match["way"]], Place((name,), "cloneofsimo"))
        elif _TOKENS.fullmatch(key) or container.metadata.get(key) == "<embed>":
            found.tokens.append(key)
        else:
            _put_named(container, found, key, places)
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
        name, part, _ = _split(key, container)
        if name and not _elsewhere(key):
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
    # Of what is laid out by the base, or by matrices that all modules share, the parts alone have no shape.
    if kind.sized or kind.shared or problem(kind, dict.fromkeys(own, ""), own):
        return None
    return kind.shape(own)


@lru_cache(maxsize=2**14)
def _elsewhere(key: str) -> bool:
    """Whether a key is of no module: of all of them, or of kohya's OFT, whose parts are called as LyCORIS' are, and
    which turns biases too."""
    return key.startswith("oft_") or any(pattern.fullmatch(key) for pattern in _SHARED.values())


def _put_named(container: Container, found: _Found, key: str, places: Mapping[str, Place | None]) -> None:
    elsewhere = _elsewhere(key)
    if elsewhere and (shared := next((part for part, pattern in _SHARED.items() if pattern.fullmatch(key)), None)):
        found.shared[shared] = key
        return
    name, part, naming = _split(key, container)
    where = places[name] if name and not elsewhere else None
    if where is None:
        reason = next((why for pattern, why in FOREIGN if pattern.fullmatch(key)), None)
        if reason is None and not part and _WHOLE.fullmatch(key) and not _ADAPTER.search(key):
            found.whole.append(key)
            return
        known = "of a module of no model that is known here" if part else "not a key of a format that is known here"
        found.wrong.append((key, reason or known))
        return
    if naming:
        where = replace(where, naming=naming)
    _put(found, key, name, part, where)


def _split(key: str, container: Container) -> tuple[str, str, str | None]:
    """Module's name, part, and the convention where the part shows it; an empty name where there is no known part."""
    split = _split_key(key)
    if not split[0] and key.endswith(".weight") and f"{key.removesuffix('.weight')}.on_input" in container.entries:
        return key.removesuffix(".weight"), "ia3_weight", None  # LyCORIS' IA³
    return split


@lru_cache(maxsize=2**14)
def _split_key(key: str) -> tuple[str, str, str | None]:
    """The same by the key alone."""
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
    if match := _MODULATION.fullmatch(key):
        return f"{match['module']}.modulation", "diff", None
    return "", "", None


def _put(found: _Found, key: str, name: str, part: str, where: Place) -> None:
    parts = found.parts.setdefault(name, {})
    found.places.setdefault(name, where)
    if part in parts:
        found.wrong.append((key, f"a second {part} of {brief(name)}"))
    parts[part] = key


def _named_models(specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> dict[str, Spec]:
    """Specs by module, the text encoders called as the pipelines of the file's family call them, where the file does
    not: a single one by its width (SDXL's second has 1280), others by the family of the rest."""
    models = {module.partition(".")[0] for module in specs}
    widths = {spec.shape[1] for module, spec in specs.items() if re.match(r"text_encoder\..*\.self_attn\.", module)}
    moved = {"text_encoder": "text_encoder_2"} if widths == {1280} else {}
    if any(re.fullmatch(r"text_encoder_([a-z]\w*|3)", model) for model in models):
        rest = {module: spec.shape for module, spec in specs.items() if not module.startswith("text_encoder")}
        family = belonging(rest, metadata).family if rest else OTHER
        if any(module.startswith("transformer.single_transformer_blocks.") for module in rest) and family == OTHER:
            family = "FLUX"  # at sizes of its own
        moved |= {model: text_encoder(model, family) for model in models if model.startswith("text_encoder_")}
    named = {}
    for module, spec in specs.items():
        model, _, rest_of = module.partition(".")
        here = moved.get(model, model)
        module = f"{here}.{rest_of}"
        wants = tuple(f"{here}.{each.partition('.')[2]}" for each in spec.wants)
        named[module] = replace(spec, module=module, wants=wants) if here != model else spec
    return dict(sorted(named.items())) if len(named) == len(specs) else dict(sorted(specs.items()))


# --- shapes


@dataclass
class _Context:
    """What the specs of a module are made from, beside its parts; `cut`: kind → the leaves and rows of its modules,
    where they share matrices that are cut to each."""

    container: Container
    configs: scales.Configs
    base: str | None
    wrong: list[tuple[str, str]]
    cut: dict[str, set[tuple]] = field(default_factory=dict)


def _rows(container: Container, parts: Mapping[str, str]) -> tuple[int, ...]:
    return tuple(container.entries[key].shape[0] for part, key in parts.items() if part.endswith("_lambda_b"))


def _specs(context: _Context, name: str, parts: Mapping[str, str], where: Place) -> Iterator[Spec]:
    """The specs of one named module: its weight's, its bias's, or those of the modules that it fuses."""
    parts, wrong = dict(parts), context.wrong
    shapes = {part: context.container.entries[key].shape for part, key in parts.items()}
    bias, of_pair = parts.pop("bias", None), parts.pop("B_bias", None)
    kind = kind_of(parts)
    if not parts and bias is not None and of_pair is None:
        yield from _bias(context, Spec("", "bias", {"diff": bias}, (0, 1), 1), where, None)
        return
    if set(parts) == {"alpha"}:
        if not any(foreign == name for foreign, _ in _modules(wrong)):
            wrong.append((name, "an α of no update"))
        return
    if "alpha" in parts and math.prod(shapes["alpha"]) != 1:
        wrong.append((parts["alpha"], "not one number"))
        return
    try:
        spec, experts = _layer(context, name, kind, parts, shapes, where)
    except ValueError as error:
        if isinstance(error, LoraFileError):
            raise
        wrong.append((name, str(error)))
        return
    if spec is None:
        return
    if experts > 1:
        yield from _experts(context, name, spec, experts)
        return
    try:
        yield from _biases(context, spec, where, bias, of_pair)
    except ValueError as error:
        wrong.append((name, str(error)))
        return
    yield from _cut(context, name, spec, where)


def _layer(
    context: _Context, name: str, kind: Kind, parts: Mapping[str, str], shapes: dict[str, tuple[int, ...]], where: Place
) -> tuple[Spec | None, int]:  # fmt: skip
    """The spec of a module's whole layer, and how many experts share it; None where something is wrong, which is then
    said. Raises ValueError with what a configuration says that does not fit."""
    config = scales.of_model(context.configs, where.modules[0])
    block = scales.blocks(config, name) if kind is LORA else None
    if block is not None and len(shapes.get(block[0], ())) == 2 and shapes[block[0]][0] % block[1] == 0:
        kind, (side, count) = BLOCKS, block
        shapes[side] = (shapes[side][0], shapes[side][1] * count)
    if found := problem(kind, parts, {part: shapes[part] for part in parts}):
        raise ValueError(found)
    if kind is LORA:
        kind = scales.start(config) or kind
    spec = _spec(context, name, kind, parts, shapes, where, config)
    if spec is None:
        return None, 1
    if kind is BLOCKS and block is not None:
        spec = replace(spec, settings={"side": block[0], "nblocks": block[1]})
    return spec, scales.experts(config, name, spec.rank) if kind is LORA else 1


def _experts(context: _Context, name: str, spec: Spec, experts: int) -> Iterator[Spec]:
    """A spec for each expert of a layer."""
    rank, config = spec.rank // experts, scales.of_model(context.configs, spec.module)
    scale = scales.of_config(context.container, spec.module, name, LORA, rank, config)
    for e in range(experts):
        said = {"expert": e, "experts": experts}
        yield replace(spec, module=f"{spec.module}.{e}", kind=EXPERTS.name, rank=rank, scale=scale, settings=said)


def _biases(context: _Context, spec: Spec, where: Place, bias: str | None, of_pair: str | None) -> Iterator[Spec]:
    """The specs of a layer's bias, beside that of its weight."""
    if of_pair is not None:  # of the layer B, so of its scale
        keys = {"diff": of_pair, **{part: key for part, key in spec.keys.items() if part == "alpha"}}
        yield from _bias(context, Spec("", "bias", keys, (0, 1), spec.rank, scale=spec.scale), where, spec.layer)
    if bias is not None:
        yield from _bias(context, Spec("", "bias", {"diff": bias}, (0, 1), 1), where, spec.layer)
    if spec.kind == IA3.name and len(where.modules) == 1 and context.base is not None:  # its outputs' bias is scaled
        wants = (f"{where.modules[0]}.bias",)
        weight = base_shape(context.base, spec.wants[0]) or ()
        outputs = of_outputs(context.container.entries[spec.keys["ia3_l"]].shape, weight)
        if outputs and base_shape(context.base, wants[0]) is not None:
            size = (spec.shape[0], 1)
            yield replace(spec, module=wants[0], shape=size, layer=size, rank=1, wants=wants)


def _cut(context: _Context, name: str, spec: Spec, where: Place) -> Iterator[Spec]:
    """The spec of a layer, or those of the modules that it fuses."""
    if where.rows is None:
        if where.swapped and spec.shape[0] % 2:
            context.wrong.append((name, f"{spec.shape[0]} rows have no two halves"))
            return
        yield spec
        return
    cuts = _cuts(where.rows, spec.shape)
    if cuts is None:
        shape = f"{spec.shape[0]} × {spec.shape[1]}"
        context.wrong.append((name, f"{shape} is not the fused layer of {listed(where.modules)}"))
        return
    for module, rows in zip(where.modules, cuts, strict=True):
        yield replace(spec, module=module, shape=(rows[1] - rows[0], spec.shape[1]), rows=rows, heads=where.heads)


def _modules(wrong: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """What is wrong, by the module of its key."""
    for key, reason in wrong:
        parts = key.split(".")
        yield from ((".".join(parts[:n]), reason) for n in range(1, len(parts)))


def _spec(
    context: _Context, name: str, kind: Kind, parts: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]],
    where: Place, config: Mapping[str, Any] | None,
) -> Spec | None:  # fmt: skip
    """The spec of a module's whole layer; None where something is wrong, which is then said."""
    wrong = context.wrong
    if why := scales.no_update(config):
        wrong.append(("", why))
        return None
    if kind.settings and config is None:
        what = (
            f"{kind.name}: the file does not say its {listed(kind.settings)}, which PEFT keeps in adapter_config.json"
        )
        wrong.append((name, f"{what} beside it"))
        return None
    shapes = {
        part: shapes[part] if part in shapes else context.container.entries[key].shape for part, key in parts.items()
    }
    wants: tuple[str, ...] = ()
    shape: tuple[int, int] | None = kind.shape(shapes)
    one_size = len(context.cut.get(kind.name, ())) == 1  # matrices that are cut to layers of one size fit as they are
    if kind.relative is not None and not (one_size and context.base is None and kind.name in ("VeRA", "PVeRA")):
        if context.base is None:
            wrong.append(
                (name, f"{kind.name}: the update {kind.why}; name a diffusers folder of its base in weights.base")
            )
            return None
        wants = tuple(f"{module}.weight" for module in where.modules)
        if kind.sized and (shape := _laid_out(context.base, wants)) is None:
            wrong.append((name, f"{kind.name}: weights.base has no {listed(wants)}, whose shape the update has"))
            return None
    assert shape is not None
    if min(shape) < 1:
        wrong.append((name, "of size zero"))
        return None
    rank = kind.rank(shapes)
    if kind.sized and rank == 1:  # what is dense has the full one
        rank = min(shape)
    spec = Spec(where.modules[0], kind.name, parts, shape, rank, swapped=where.swapped, layer=shape, wants=wants)
    return _with_scale(context, spec, name, kind, config)


def _with_scale(context: _Context, spec: Spec, name: str, kind: Kind, config: Mapping[str, Any] | None) -> Spec:
    """The spec with what its configuration or its header says of the scale, or of the settings of its kind."""
    header = context.container.metadata
    if kind.settings:
        return replace(spec, settings={key: (config or {}).get(key) for key in kind.settings})
    if kind in (LOKR, DORA) and both_whole(spec.keys) and "r" not in (config or {}):
        # α means nothing, and one in a header alone as little; unless it is a root of LyCORIS'.
        return replace(spec, settings={"rs_lora": True}) if scales.root_of_rank(header) else spec
    if "alpha" in spec.keys:
        return spec
    scale = scales.of_config(context.container, spec.module, name, kind, spec.rank, config)
    return replace(spec, scale=scale)


def _laid_out(base: str, wants: tuple[str, ...]) -> tuple[int, int] | None:
    """(out, in) of tensors of the base one below the other, flat; None where one is missing or of another width."""
    found = [base_shape(base, each) for each in wants]
    sizes = [(shape[0], math.prod(shape[1:])) for shape in found if shape]
    if len(sizes) < len(found) or len({width for _, width in sizes}) != 1:
        return None
    return sum(out for out, _ in sizes), sizes[0][1]


def _cuts(rows: tuple[int, ...], shape: tuple[int, int]) -> list[tuple[int, int]] | None:
    """Where the rows of a fused layer are cut; None where it is not of this shape."""
    stops = list(accumulate(rows))
    return list(zip([0, *stops[:-1]], stops, strict=True)) if stops and stops[-1] == shape[0] else None


def _bias(context: _Context, spec: Spec, where: Place, layer: tuple[int, int] | None) -> Iterator[Spec]:
    """A bias is a matrix of one column; that of a fused layer is cut as its weight is, `layer` (out, in)."""
    key = spec.keys["diff"]
    shape = context.container.entries[key].shape
    size = shape[0] if len(shape) == 1 else 0
    cuts = [(0, size)] if where.rows is None else _cuts(where.rows, (size, 1))
    if size < 1 + where.swapped or (where.swapped and size % 2) or cuts is None or (layer and layer[0] != size):
        context.wrong.append((key, "not the bias of its layer"))
        return
    for module, rows in zip(where.modules, cuts, strict=True):
        yield replace(
            spec, module=f"{module}.bias", shape=(rows[1] - rows[0], 1), swapped=where.swapped,
            rows=rows if len(cuts) > 1 else None, layer=(size, 1),
        )  # fmt: skip
