"""Variants: one study under other settings, such as another seed, rank or initialisation, side by side with it.

A variant is an overlay of the study's configuration. It has results of its own, but reads whatever its settings do not
change where the study has it: another rank is trained on the very same pictures, by the same plan.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from .descriptors import looks
from .study import StudyError

# Stage → the keys of the configuration that its results depend on; each depends on all before it, too.
STAGES: dict[str, tuple[str, ...]] = {
    "pictures": ("seed", "folder", "pictures"),
    "plan": ("plan",),
    "loras": ("base", "training"),
    "generated": ("generation",),
}


def variants(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name → configuration of each variant of a study; raises StudyError for one that changes nothing, or its name.

    ``shared`` of a variant holds the study, and the stages that are the study's own.
    """
    found = {}
    for name, overlay in config["variants"].items():
        wrong = sorted({"study", "variants", "shared", "loras", "query"} & set(overlay))
        if wrong:
            raise StudyError(f"variants.{name}: a variant cannot set {', '.join(wrong)}; make it a study of its own")
        merged = merge(config, overlay)
        if not changes(config, merged):
            raise StudyError(f"variants.{name}: changes nothing; name at least one key with another value")
        merged |= {"study": f"{config['study']}/variants/{name}", "variants": {}}
        # Where LoRAs are shared they stay in the packs that the study trains and generates them in.
        packing = {"artists_per_job": config["resources"]["artists_per_job"]}
        merged["shared"] = {"study": config["study"], "stages": list(_shared(config, merged)), **packing}
        found[name] = merged
    return found


def merge(config: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the overlay's keys: mappings are merged, all else is replaced."""
    merged = dict(config)
    for key, value in overlay.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def changes(config: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Keys with dots → what they are in `other`, of all that differ; None where `other` lacks them."""
    found: dict[str, Any] = {}
    for key in [*config, *(key for key in other if key not in config)]:
        before, after = config.get(key), other.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found |= changes(before, after, f"{prefix}{key}.")
        elif before != after:
            found[f"{prefix}{key}"] = after
    return found


def differing(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Variant → its changes."""
    return {name: changes(config, merge(config, overlay)) for name, overlay in config["variants"].items()}


def replicates(config: Mapping[str, Any]) -> list[str]:
    """Variants that differ from the study in nothing but the seed."""
    return [name for name, changed in differing(config).items() if set(changed) == {"seed"}]


def _shared(config: Mapping[str, Any], variant: Mapping[str, Any]) -> Iterator[str]:
    for stage, keys in STAGES.items():
        if any(config[key] != variant[key] for key in keys):
            return
        # A study without a model that looks at pictures has nothing generated that could be shared.
        if stage == "generated" and not any(map(looks, config["extractors"].values())):
            return
        yield stage
