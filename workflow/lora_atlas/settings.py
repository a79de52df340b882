"""Sampler settings: how, and what, every LoRA generates pictures; each setting is one source of features.

The grid has every step count with every guidance scale, and the same few prompts from the same noise for all LoRAs. A
series, for the worth curve, has many pictures at one point of the grid: ``shared``, the same prompts from the same
noise for all LoRAs; or ``own``, other prompts and other noise for each, as pictures found somewhere are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .seeds import derive_seed

SHARED, OWN = "shared", "own"


@dataclass(frozen=True)
class Setting:
    """One sampler setting; `prompts` and `numbers` make the pictures of the grid, `series` and `pictures` a series."""

    steps: int
    guidance: float
    prompts: tuple[str, ...]
    numbers: tuple[int, ...] = ()
    series: str | None = None
    pictures: int = 0

    @property
    def name(self) -> str:
        """The part of a path that names it: ``s16_g3``, ``s30_g7.5``, ``s8_g1_own64``."""
        return f"s{self.steps}_g{self.guidance:g}" + (f"_{self.series}{self.pictures}" if self.series else "")

    @property
    def label(self) -> str:
        """The same in words."""
        how = f"{self.steps} steps, " + (f"guidance {self.guidance:g}" if self.guided else "no guidance")
        words = {SHARED: "shared prompts", OWN: "prompts of its own"}
        return how + (f", {self.pictures} pictures, {words[self.series]}" if self.series else "")

    @property
    def guided(self) -> bool:
        return self.guidance > 1

    @property
    def count(self) -> int:
        """Pictures of one LoRA."""
        return self.pictures if self.series else len(self.prompts) * len(self.numbers)

    @property
    def passes(self) -> int:
        """Passes of the network for one picture: its steps, and twice as many with guidance."""
        return self.steps * (2 if self.guided else 1)

    def tasks(self, lora: str) -> list[tuple[str, int]]:
        """Prompt and number of each of a LoRA's pictures; the two and the study's seed give its first noise."""
        if self.series is None:
            return [(prompt, number) for prompt in self.prompts for number in self.numbers]
        who = lora if self.series == OWN else ""
        numbers = [derive_seed("series", self.series, who, i) for i in range(self.pictures)]
        return [(self.prompts[(i if who == "" else n) % len(self.prompts)], n) for i, n in enumerate(numbers)]


def settings(generation: Mapping[str, Any]) -> list[Setting]:
    """The settings of a study, the grid first."""
    prompts, numbers = tuple(generation["prompts"]), tuple(generation["seeds"])
    found = [
        Setting(steps, guidance, prompts, numbers)
        for steps in generation["num_inference_steps"]
        for guidance in generation["guidance_scale"]
    ]
    if many := generation["worth"]:
        found += [
            Setting(
                many["num_inference_steps"], many["guidance_scale"], tuple(many["prompts"]), (), kind, many["pictures"]
            )
            for kind in many["series"]
        ]
    return found
