"""Sections of a checked configuration as values. An adapter makes them once, from what its rule hands over; the library
reads fields that exist, and a section with other values is ``section | {"rank": 8}``.

The keys, their defaults and what they mean stand in config.yaml; docs/config.md lists them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self


@dataclass(frozen=True)
class Section:
    """What all sections have in common."""

    def __or__(self, changes: Mapping[str, Any]) -> Self:
        return replace(self, **changes)

    def plain(self) -> dict[str, Any]:
        """The section as it stands in the configuration."""
        return asdict(self)


@dataclass(frozen=True)
class Base(Section):
    """Section "base": a diffusers folder, or a hub id with its commit, and which of its files to read."""

    model: str
    revision: str | None = None
    variant: str | None = None


@dataclass(frozen=True)
class Pictures(Section):
    """Section "pictures": where pictures come from, and which of them are used."""

    source: str
    artists: Sequence[str] | Mapping[str, Sequence[str]] | None
    per_artist: int | None
    artists_per_genre: int
    min_side: int
    trim: bool
    duplicates: float | None
    manifest: str | None
    dataset: Mapping[str, Any] | None
    categories: Mapping[str, Mapping[str, Any]] | None
    api: str | None
    icons: Mapping[str, Any] | None
    archive: Mapping[str, str] | None
    contact: str | None
    store: str
    private_network: bool


@dataclass(frozen=True)
class Icons(Section):
    """Section "pictures.icons": which drawings of icon families are used, and how they are rendered."""

    size: int = 64
    ground: str = "#ffffff"
    ink: str = "#404040"
    grey: bool = False
    palette: bool | None = None
    categories: Sequence[str] | None = None
    licences: Sequence[str] | None = None
    flags: bool = False


@dataclass(frozen=True)
class Training(Section):
    """Section "training": how every LoRA of a study is trained."""

    resolution: int
    aspect_ratio_buckets: bool
    caption: str
    rank: int
    alpha: float
    targets: Sequence[str]
    init: str
    noise: str
    steps: int
    batch: int
    learning_rate: float
    warmup: int
    lr_schedule: str
    weight_decay: float
    max_grad_norm: float
    loss: str
    min_snr_gamma: float


@dataclass(frozen=True)
class Probe(Section):
    """Section "weights.probe": the samples that the frozen base generates to be asked about its layers."""

    samples: int
    num_inference_steps: int
    batch: int
    seed: int
    prompts: Sequence[str]


@dataclass(frozen=True)
class Extractor(Section):
    """One of the section "extractors": a library's model of image features, or a control."""

    library: str
    model: str
    pretrained: str | None = None
    revision: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Embedding(Section):
    """Section "embedding": principal components and their calibrations."""

    dimensions: int
    calibrations: Sequence[str]
    calibration: str
    folds: int


@dataclass(frozen=True)
class Attribution(Section):
    """Section "attribution": how the base is asked which LoRAs some pictures speak for."""

    samples: int
    caption: str | None
    resolution: int | None
    reference: int
    batch: int
    memory_mb: int


@dataclass(frozen=True)
class Ways(Section):
    """Section "attribution.ways": what else pictures are asked, for the table "attribution_ways"."""

    samples: Sequence[int] = (8, 16, 32, 64, 128)
    captions: Sequence[str] = ("",)
    powers: Sequence[float] = (0.25, 0.5, 1.0)
    classifier: int | None = 8
    few: int = 4
    generated: int = 24
