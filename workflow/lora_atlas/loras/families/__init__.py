"""Base families by evidence: the shapes of all that a LoRA changes, held against the table of released models.

A file belongs to the family of which a released model has all its modules at their shapes. Where several have, the
header decides, then which has no other layers of these names, then the order in which the models are listed; and the
remark says so. (A model with fewer blocks than one that is listed before it is taken where the file changes all of its
blocks.) What fits no released model is its names' family, at sizes of its own, where names alone decide; else it is
"other". What a header says is asked for nothing else: headers lie.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from .released import RELEASED
from .sd import SGM
from .spelling import Spelling
from .table import Architecture, Shape, Variant, kin, parsed, table

OTHER, LANGUAGE = "other", "language model"
FAMILIES: tuple[str, ...] = tuple(dict.fromkeys(each.family for each in RELEASED))
SPELLINGS: tuple[Spelling, ...] = (SGM,)

# Text encoder → width of its attention, of the families whose text encoders are trained with them.
TEXTS: dict[str, dict[str, int]] = {
    "SD1.x": {"text_encoder": 768},
    "SD2.x": {"text_encoder": 1024},
    "SDXL": {"text_encoder": 768, "text_encoder_2": 1280},
    "SD3": {"text_encoder": 768, "text_encoder_2": 1280, "text_encoder_3": 4096},
    "FLUX": {"text_encoder": 768, "text_encoder_2": 4096},
}
# Which of a pipeline's text encoders one is by its role, where that is not what "" says; a family that is not known
# counts as SD3 does.
_TEXT_PLACES: dict[str, dict[str, int]] = {
    "": {"clip_l": 1, "clip_g": 2, "t5": 1, "byt5": 2, "llm": 1},
    OTHER: {"t5": 3}, "SD3": {"t5": 3}, "FLUX": {"t5": 2}, "HiDream": {"t5": 3, "llm": 4},
    "HunyuanVideo": {"clip_l": 2}, "FramePack": {"clip_l": 2}, "Kandinsky 5": {"clip_l": 2},
    "Hunyuan-DiT": {"t5": 2},
}  # fmt: skip
# Families of which none is likelier than another where their modules are the same.
_PEERS = ({"SD1.x", "SD2.x", "SDXL", "SDXL refiner"}, {"SD3", "FLUX"}, {"PixArt", "Sana"})
# Models that were made out of another, whose modules they all have.
_MADE_OF = {
    "AnimateDiff": "SD1.x", "Kolors": "SDXL", "SkyReels-V2": "Wan", "ChronoEdit": "Wan", "AnyFlow": "Wan",
    "Wan VACE": "Wan", "Wan Animate": "Wan", "Helios": "Wan", "FramePack": "HunyuanVideo", "ConsisID": "CogVideoX",
    "Cosmos": "Anima",
}  # fmt: skip
# What headers call a family, in lower case, the more particular first.
_CLAIMS: tuple[tuple[str, str], ...] = (
    ("FLUX.2", r"flux[-_. ]?2|klein"), ("FLUX.3", r"flux[-_. ]?3"), ("Chroma", r"chroma"),
    ("LongCat-Image", r"longcat[-_. ]?image"), ("Ovis-Image", r"ovis[-_. ]?image"), ("FLUX", r"flux"),
    ("Nucleus-Image", r"nucleus[-_. ]?image"), ("BRIA FIBO", r"\bfibo\b(?![-_. ]?2)"),
    ("Qwen-Image 2.1", r"qwen[-_. ]?image[-_. ]?2[-_. ]?1"), ("Qwen-Image", r"qwen[-_. ]?image"),
    ("Z-Image", r"z[-_. ]?image"), ("Lumina 2", r"lumina"), ("AuraFlow", r"aura[-_. ]?flow|pony[-_. ]?v?7"),
    ("HiDream", r"hidream"), ("Krea 2", r"krea[-_. ]?2"), ("Anima", r"\banima\b|lora_anima"), ("Cosmos", r"cosmos"),
    ("PixArt", r"pixart"), ("Hunyuan-DiT", r"hunyuan[-_. ]?dit"),
    ("Sana", r"\bsana\b"), ("CogView4", r"cogview"), ("CogVideoX", r"cogvideo"), ("SkyReels-V2", r"skyreels"),
    ("FramePack", r"framepack"), ("HunyuanImage", r"hunyuan[-_. ]?image"),
    ("HunyuanVideo 1.5", r"hunyuan[-_. ]?video[-_. ]?1[-_. ]?5|hv_?1_?5"),
    ("HunyuanVideo", r"hunyuan[-_. ]?video|lora_hv\b"),
    ("LTX-2", r"ltx[-_. ]?v?(ideo)?[-_. ]?2"), ("LTX-Video", r"ltx"), ("Mochi", r"mochi"),
    ("Kandinsky 5", r"kandinsky[-_. ]?5"), ("Wan", r"\bwan(\b|[-_. ]?\d)|lora_wan"), ("Kolors", r"kolors"),
    ("Ideogram 4", r"ideogram"), ("ERNIE-Image", r"ernie"), ("ACE-Step", r"ace[-_. ]?step"),
    ("SD3", r"sd3|sd_3|stable-diffusion-3|stable-diffusion-v3"),
    ("SDXL", r"sdxl|stable-diffusion-xl|pony|illustrious"), ("SD2.x", r"sd_?v?2|stable-diffusion-(v)?2"),
    ("SD1.x", r"sd_?v?1|stable-diffusion-(v)?1"),
)  # fmt: skip
CLAIMING = ("modelspec.architecture", "ss_base_model_version", "ss_network_module")  # keys of headers
_CLIP = re.compile(r"(?P<model>text_encoder(?:_\d)?)\..*\.self_attn\.\w+")
_LANGUAGE = re.compile(
    r"\w+\.(?:(?:base_)?(?:text_)?model\.|language_model\.|decoder\.)*layers\.\d+\."
    r"(?:self_attn\.(?:[qkvo]_proj|qkv_proj|out_proj)|mlp\.(?:gate|up|down|gate_up)_proj|fc[12])|\w+\.(?:\w+\.)*h\.\d+\..+"
)


@dataclass(frozen=True)
class Belonging:
    """What a file belongs to: its family, the released models of it whose shapes it has (none: sizes of its own), and
    a remark where that is not plain."""

    family: str
    variants: frozenset[str] = frozenset()
    remark: str | None = None

    def among(self, other: "Belonging") -> "Belonging":
        """What both of two files of one family belong to."""
        return Belonging(self.family, self.variants & other.variants)


def family(shapes: Mapping[str, Shape], metadata: Mapping[str, str] | None = None) -> tuple[str, str | None]:
    """The base family of modules and the shapes of their updates, and a remark where that is not plain.

    One of FAMILIES, a language model, or "other". `metadata`: the file's header, asked where shapes leave a choice.
    """
    found = belonging(shapes, metadata)
    return found.family, found.remark


def belonging(shapes: Mapping[str, Shape], metadata: Mapping[str, str] | None = None) -> Belonging:
    """As `family`, and the released models that these modules could be of."""
    return _belonging(tuple(sorted(shapes.items())), claimed(metadata or {}))


@lru_cache(maxsize=64)
def _belonging(shapes: tuple[tuple[str, Shape], ...], claim: str | None) -> Belonging:
    denoising = [(module, shape) for module, shape in shapes if not module.startswith("text_encoder")]
    # The table has modules; a parameter by itself, as Wan's modulation (diff_m), says nothing of the model.
    denoising = [each for each in denoising if not each[0].endswith(".modulation")] or denoising
    texts = {match["model"]: shape[1] for module, shape in shapes if (match := _CLIP.fullmatch(module))}
    if not denoising:
        names = [name for name, known in TEXTS.items() if all(known.get(m) == width for m, width in texts.items())]
        return _text_alone(names if texts else list(TEXTS))
    looked_up = [_Module.of(module, shape) for module, shape in denoising]
    fits = _fitting(looked_up)
    if fits:
        return _chosen(fits, looked_up, texts, claim)
    if all(_LANGUAGE.fullmatch(module) for module, _ in denoising):
        return Belonging(LANGUAGE)
    return _named(looked_up, claim)


@dataclass(frozen=True)
class _Module:
    model: str
    flat: str
    numbers: tuple[int, ...]
    shape: Shape
    bias: bool

    @classmethod
    def of(cls, module: str, shape: Shape) -> "_Module":
        model, _, name = module.partition(".")
        return cls(model, *parsed(name.removesuffix(".bias")), shape, name.endswith(".bias"))

    def fits(self, arch: Architecture, variant: Variant) -> bool:
        if not kin(self.model, arch):
            return False
        if self.bias:
            known = variant.shape(self.flat, self.numbers)
            return known is not None and known[0] == self.shape[0]
        return variant.fits(self.flat, self.numbers, self.shape)

    def proportioned(self, arch: Architecture, variant: Variant) -> bool:
        known = variant.shape(self.flat, self.numbers)
        if self.bias or known is None or len(known) < 2:  # a vector has none; nor has a block that the variant lacks
            return True
        return kin(self.model, arch) and known[0] * self.shape[1] == self.shape[0] * known[1]


def _fitting(modules: Sequence[_Module]) -> list[Variant]:
    """Released models that have all these modules at their shapes; a model of several parts by all of them."""
    parts: dict[str, list[_Module]] = {}
    for module in modules:
        parts.setdefault(module.model, []).append(module)
    found: list[list[Variant]] = []
    for model, each in parts.items():
        flats = {module.flat for module in each}
        found.append(
            [variant for arch, variant in table().variants
             if kin(model, arch) and flats <= variant.rows.keys() and all(m.fits(arch, variant) for m in each)]
        )  # fmt: skip
    first = max(found, key=lambda each: sum(v.counts(v.rows) for v in each))
    families = set.intersection(*({v.family for v in each} for each in found))
    return [variant for variant in first if variant.family in families]


def _chosen(
    fits: Sequence[Variant], modules: Sequence[_Module], texts: Mapping[str, int], claim: str | None
) -> Belonging:
    families = _distinct([variant.family for variant in fits], claim)
    if texts and len(families) > 1:
        agreeing = [f for f in families if f in TEXTS and all(TEXTS[f].get(m) == w for m, w in texts.items())]
        families = agreeing or families
    if claim in families:
        families = [claim]
    flats = Counter(module.flat for module in modules)
    whole = [name for name in families if any(
        variant.family == name and variant.counts(flats) == sum(flats.values()) for variant in fits
    )]  # fmt: skip
    larger: list[str] = []
    # A model with fewer blocks than one that is better known is told by a file that changes something in all of them.
    if whole and (families[0] in whole or any(v.family == whole[0] and _throughout(v, modules) for v in fits)):
        larger = [] if families[0] in whole else [name for name in families if name not in whole]
        families = whole
    first, *others = families
    if any({first, *others[:1]} <= peers for peers in _PEERS) and others:
        return Belonging(OTHER, remark=f"it changes modules that {', '.join(families)} have in common")
    also = ", ".join([*others, *larger])
    remark = f"its modules are those of {also} as well" if also else None
    return Belonging(first, frozenset(v.name for v in fits if v.family == first), remark)


def _throughout(variant: Variant, modules: Sequence[_Module]) -> bool:
    """Whether there is something of every block of a model in a file; lists of up to four blocks are left out."""
    changed = {(m.flat.partition("_#")[0], m.numbers[0]) for m in modules if m.numbers}
    return all((stem, n) in changed for stem, blocks in variant.blocks.items() if len(blocks) > 4 for n in blocks)


def text_encoder(model: str, family: str) -> str:
    """What a pipeline of a family calls a text encoder that a file names by its role ("text_encoder_t5"), or, as
    kohya's scripts do with T5, by a number that it has in other families."""
    role = "t5" if model == "text_encoder_3" else model.removeprefix("text_encoder_")
    place = _TEXT_PLACES.get(family, {}).get(role, _TEXT_PLACES[""].get(role))
    if place is None or (model == "text_encoder_3" and family not in ("FLUX", "Chroma")):
        return model
    return "text_encoder" if place == 1 else f"text_encoder_{place}"


def _distinct(families: Sequence[str], claim: str | None) -> list[str]:
    """Families in the order of the table, without those that were made of another one, unless a header names them."""
    found = sorted(set(families), key=FAMILIES.index)
    return [name for name in found if name == claim or _MADE_OF.get(name) not in found]


def _text_alone(fits: Sequence[str]) -> Belonging:
    if len(fits) == 1:
        return Belonging(fits[0])
    if not fits:
        return Belonging(OTHER, remark="its shapes are those of no family that is known here")
    return Belonging(OTHER, remark=f"it changes a text encoder alone, one that {', '.join(fits)} have in common")


def _named(modules: Sequence[_Module], claim: str | None) -> Belonging:
    """What no released model fits: the family of its names, where there is one."""
    flats = {module.flat for module in modules}
    near = max(
        ((sum(m.fits(arch, variant) for m in modules), -variant.rank, variant) for arch, variant in table().variants
         if not flats.isdisjoint(variant.rows)),
        key=lambda each: each[:2], default=None,
    )  # fmt: skip
    missed = "" if near is None else f"all but {len(modules) - near[0]} of {len(modules)} modules are those of "
    missed += "" if near is None else f"{near[2].family} {near[2].name}"
    close = near is not None and near[0] >= 0.8 * len(modules)
    named = [
        (arch, variant) for arch in table().architectures
        if flats <= arch.direct.keys()
        and all(kin(m.model, arch) and any(e.takes(m.numbers) for e in arch.direct[m.flat]) for m in modules)
        for variant in arch.variants
    ]  # fmt: skip
    families = _distinct([variant.family for _, variant in named], claim)
    if claim in families:
        families = [claim]
    # A small model has the proportions of a large one; UNets have few of their own.
    if len(families) > 1 and not set(families) <= _PEERS[0] | {"Kolors", "AnimateDiff"}:
        alike = {v.family for arch, v in named if all(m.proportioned(arch, v) for m in modules)}
        families = [name for name in families if name in alike] or families
    if len(families) == 1:
        sizes = missed if close else "its modules are named as this family's, at the sizes of none that is released"
        return Belonging(families[0], remark=sizes)
    said = "its shapes are those of no family that is known here"
    if families:
        said += f"; its modules have the names of {', '.join(families[:6])}{' and others' if families[6:] else ''}"
    return Belonging(OTHER, remark=f"{said}; {missed}" if close else said)


def claimed(metadata: Mapping[str, str]) -> str | None:
    """The family that a header claims, or None where it claims none that is known here."""
    said = " ".join(metadata.get(key, "") for key in CLAIMING).lower()
    return next((name for name, pattern in _CLAIMS if re.search(pattern, said)), None)
