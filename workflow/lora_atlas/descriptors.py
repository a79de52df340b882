"""Descriptors: every description of a LoRA that a study compares, as values that are asked and never parsed.

A descriptor of the weights is a kernel, a module weighting and a scale; one of pictures an extractor and where the
pictures of the gallery and of the queries come from; a control of the weights its own name. `descriptors` lists those
of a study; embeddings, rules, tables, charts and findings ask it. A name is made from the value, for files and tables:

``delta_gradient`` (kernel, module weighting), ``delta`` (modules as they are), ``delta_raw`` (norms as they are);
``clip_training`` (an upper bound: it knows the training pictures), ``clip_s8_g3`` (pictures generated at 8 steps,
guidance 3), ``clip_training_to_s8_g3`` (pictures → LoRA: queries are training pictures, the gallery is known by
generated ones), ``clip_s8_g3_to_training`` (LoRA → pictures), ``mean_colour_training`` (a control); ``norm``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from .settings import Setting, settings

WEIGHTS, LEARNT, GENERATED, TRAINING, CONTROL, ACROSS = (
    "weights", "weights and labels", "generated pictures", "training pictures", "control", "across sources",
)  # fmt: skip
# What a descriptor looks at, in the order in which a comparison shows them. Those that compare across sources answer
# another question, and stand in no comparison.
KINDS = (WEIGHTS, LEARNT, GENERATED, TRAINING, CONTROL)

PLAIN, UNIT, GRADIENT, CONSENSUS, KFAC, SUPERVISED = "plain", "unit", "gradient", "consensus", "kfac", "learnt"
WEIGHTINGS = (GRADIENT, CONSENSUS, UNIT, KFAC, PLAIN, SUPERVISED)  # of modules
RAW = "raw"
BY_CONTENT = "content"  # the control that knows nothing but subjects
BY_CONTROL, BY_GRADIENT = "control", "gradient"  # libraries of extractors that are no model of images
SCALES = (UNIT, RAW)  # of LoRAs
PICTURES = "training"  # the source of features that is no sampler setting

_KERNELS_IN_WORDS = {"delta": "updates ΔW", "factors": "raw factors", "down": "raw A", "up": "raw B"}
_IN_WORDS = {
    PLAIN: "every module as it is",
    UNIT: "every module at norm one",
    GRADIENT: "modules weighted by the base's gradients",
    CONSENSUS: "modules weighted by their consensus",
    KFAC: "K-FAC metric of the base",
    SUPERVISED: "modules weighted with labels of other artists",
}


@dataclass(frozen=True)
class Descriptor:
    """One description of a LoRA. `kind`: what it looks at, one of KINDS or ACROSS; the fields of other kinds are None.

    `gallery` and `query`: the source of an extractor's pictures, "training" or the name of a sampler setting.
    """

    kind: str
    kernel: str | None = None
    modules: str | None = None
    scale: str | None = None
    extractor: str | None = None
    gallery: str | None = None
    query: str | None = None
    control: str | None = None
    setting: str | None = None  # of generated pictures, in words
    series: str | None = None  # of generated pictures: "shared" or "own"; None: the grid
    passes: int = 0  # of the network for one generated picture
    pictures: int = 0  # generated pictures of one LoRA

    @property
    def name(self) -> str:
        if self.control:
            return self.control
        if self.kernel:
            parts = [self.kernel] + [self.modules] * (self.modules != PLAIN) + [self.scale] * (self.scale != UNIT)
            return "_".join(str(part) for part in parts)
        if self.gallery == self.query:
            return f"{self.extractor}_{self.gallery}"
        return f"{self.extractor}_{self.query}_to_{self.gallery}"

    @property
    def label(self) -> str:
        """The same in words, for charts and pages."""
        if self.control:
            return {
                "norm": "norm of the update",
                "set_size": "size of the training set",
                "content": "what is depicted",
            }.get(self.control, self.control.replace("_", " "))
        if self.kernel:
            assert self.modules is not None  # a kernel comes with them
            what = _KERNELS_IN_WORDS.get(self.kernel, f"kernel {self.kernel}")
            return f"{what}, {_IN_WORDS[self.modules]}" + (", norms kept" if self.scale == RAW else "")
        seen = str(self.extractor).replace("_", " ")
        seen = seen.upper() if self.kind != CONTROL and len(seen) <= 4 else seen
        if self.gallery == self.query:
            return f"{seen}, {self.setting or 'training pictures'}"
        return f"{seen}, {self.query} → {self.gallery}"

    @property
    def source(self) -> str | None:
        """Where all of its pictures come from; None for weights, and across sources."""
        return self.gallery if self.gallery == self.query else None


def descriptors(config: Mapping[str, Any]) -> list[Descriptor]:
    """All descriptors of a checked configuration: weights first (the headline's first of all), then pictures, then
    controls of the weights."""
    weights, extractors = config["weights"], config["extractors"]
    return [
        *_of_weights(weights),
        *_of_pictures(extractors, settings(config["generation"])),
        *(Descriptor(CONTROL, control=name) for name in weights["controls"]),
    ]


def _of_weights(weights: Mapping[str, Any]) -> list[Descriptor]:
    found = []
    for kernel in weights["kernels"]:
        for modules in weights["modules"]:
            if modules in (KFAC, SUPERVISED) and kernel != "delta":
                continue  # the metric is one of updates; one upper bound is enough
            kind = LEARNT if modules == SUPERVISED else WEIGHTS
            # How large a LoRA is, is a question of its own, asked of modules as they are.
            scales = weights["scales"] if modules == PLAIN else [UNIT]
            found += [Descriptor(kind, kernel, modules, scale) for scale in scales]
    return found


def _of_pictures(extractors: Mapping[str, Any], sampled: list[Setting]) -> list[Descriptor]:
    found = []
    for name, extractor in extractors.items():
        control = extractor["library"] == BY_CONTROL
        kind = CONTROL if control else TRAINING
        found.append(Descriptor(kind, extractor=name, gallery=PICTURES, query=PICTURES))
        for setting in sampled if looks(extractor) else []:
            generated = Descriptor(
                GENERATED,
                extractor=name,
                gallery=setting.name,
                query=setting.name,
                setting=setting.label,
                series=setting.series,
                passes=setting.passes,
                pictures=setting.count,
            )
            found.append(generated)
            if setting.series is None:
                found.append(replace(generated, kind=ACROSS, query=PICTURES))
                found.append(replace(generated, kind=ACROSS, gallery=PICTURES))
    return found


def looks(extractor: Mapping[str, Any]) -> bool:
    """Whether an extractor is a model that looks at pictures, generated ones too: no control, and not the base."""
    return extractor["library"] not in (BY_CONTROL, BY_GRADIENT)


def of_gradient(extractors: Mapping[str, Any]) -> str | None:
    """The extractor that describes pictures by the base's gradient, if there is one."""
    return next((name for name, each in extractors.items() if each["library"] == BY_GRADIENT), None)


def module_kernels(asked: Sequence[str], kfac: bool) -> list[str]:
    """Kernels whose matrices of single modules a study needs: those of the ablation, which make up ``factors``, others
    that are asked for, and that of the base's metric."""
    ablated = ["delta", "down", "up"]
    return [*ablated, *(kernel for kernel in asked if kernel not in (*ablated, "factors")), *[KFAC] * kfac]


def baseless(modules: Sequence[str]) -> str | None:
    """The first of several module weightings that a folder of LoRA files can have, whose base nobody names."""
    return next((how for how in modules if how in (CONSENSUS, PLAIN)), None)


def of_weights(described: Mapping[str, Descriptor]) -> list[str]:
    """Names of the descriptors of the weights that have every LoRA at norm one, the headline first."""
    return [name for name, each in described.items() if each.kind == WEIGHTS and each.scale == UNIT]


def compared(found: list[Descriptor]) -> list[Descriptor]:
    """Those that describe a LoRA by one thing, and can be compared with each other."""
    return [descriptor for descriptor in found if descriptor.kind != ACROSS]


def kinds(found: list[Descriptor]) -> dict[str, str]:
    """Name → what it looks at, of those that can be compared."""
    return {descriptor.name: descriptor.kind for descriptor in compared(found)}


def stored(found: list[Descriptor]) -> list[dict[str, Any]]:
    """The values as JSON, for a table's metadata."""
    return [asdict(descriptor) for descriptor in found]


def restored(values: list[Mapping[str, Any]]) -> dict[str, Descriptor]:
    """Name → descriptor, from what `stored` gave."""
    found = [Descriptor(**value) for value in values]
    return {descriptor.name: descriptor for descriptor in found}
