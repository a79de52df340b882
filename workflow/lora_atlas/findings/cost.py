"""What describing one LoRA costs, from the table "cost": seconds of jobs, shared among what they made."""

from collections.abc import Mapping
from typing import Any

from ..descriptors import GENERATED, LEARNT, PLAIN, WEIGHTS, Descriptor


def seconds_per_lora(cost: Any, described: Mapping[str, Descriptor]) -> dict[str, float | None]:
    """Descriptor → seconds that describing one LoRA takes, the LoRA being there; None where it was not measured.

    By weights: the Gram matrix; where modules are weighted, that of single modules. (The pass of the base that gives
    gradients is one for all LoRAs of a base, and is no part of it: the table has it.) By generated pictures: generating
    and looking at those of one setting, process start included. Training pictures are not known of a LoRA that is found
    somewhere.
    """
    rows = {(row["stage"], row["item"]): row for row in cost.to_pylist()}
    each = seconds_per_picture(cost, described)
    found: dict[str, float | None] = dict.fromkeys(described)
    for name, descriptor in described.items():
        if descriptor.kind in (WEIGHTS, LEARNT):
            gram = rows.get(("gram", descriptor.kernel if descriptor.modules == PLAIN else "modules"))
            found[name] = gram["seconds"] / gram["count"] if gram else None
        elif name in each:
            found[name] = each[name] * descriptor.pictures
    return found


def seconds_per_picture(cost: Any, described: Mapping[str, Descriptor]) -> dict[str, float]:
    """Descriptor of generated pictures → seconds to generate one picture and to look at it, where both were measured.

    Generating is measured for all sampler settings together, and is shared by them in proportion to the passes of the
    network that they take.
    """
    rows = {(row["stage"], row["item"]): row for row in cost.to_pylist()}
    painted = [row for (stage, _), row in rows.items() if stage == "generate"]
    pictures, seconds = sum(row["count"] for row in painted), sum(row["seconds"] for row in painted)
    settings = {d.source: d for d in described.values() if d.kind == GENERATED}
    every = sum(d.pictures for d in settings.values())
    found: dict[str, float] = {}
    for name, descriptor in described.items():
        seen = rows.get(("features", descriptor.extractor))
        if descriptor.kind == GENERATED and pictures and seen:
            mean = sum(d.pictures * d.passes for d in settings.values()) / every
            found[name] = descriptor.passes / mean * seconds / pictures + seen["seconds"] / seen["count"]
    return found
