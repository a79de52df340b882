"""Scales and settings that stand beside the tensors: in PEFT's adapter_config.json, or in the header of the file."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from .container import Container, LoraFileError
from .kinds import STARTS
from .kinds.kind import Kind
from .reasons import brief

# Where a header may state α: diffusers' JSON, or a number by itself. Not kohya's ss_network_alpha: its scripts write
# each module's α as a tensor too, and their converters (sd-scripts' convert_flux_lora, musubi-tuner's convert_lora) put
# the scale into A and B, drop those tensors, and keep the header.
STATED = {"lora_adapter_metadata"} | {
    f"{model}{name}"
    for model in ("", "transformer.", "unet.", "text_encoder.")
    for name in ("lora_alpha", "network_alpha", "alpha")
}
# Starts of PEFT that take something out of the base which its weight alone does not tell.
_OUT_OF_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")

# What PEFT takes where a configuration of its own names no α.
PEFT_ALPHA, PEFT_TYPES = 8, {"LORA", "LOHA", "LOKR"}

MAX_EXPERTS, MAX_BLOCKS = 1024, 16

Configs = Mapping[str, Mapping[str, Any]]


def configs(container: Container, config: Mapping[str, Any] | None) -> Configs:
    """Model ("" for all) → its PEFT configuration: that of the folder, of diffusers' header, or the α of a header."""
    if config is not None:
        return {"": config}
    text = container.metadata.get("lora_adapter_metadata")
    if not text:
        return _of_header(container)
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


def _of_header(container: Container) -> Configs:
    """α that stands in the header alone, as some trainers and converters leave it: of all modules, or of a model."""
    found: dict[str, dict[str, Any]] = {}
    for key in sorted(STATED & set(container.metadata)):
        model, _, _ = key.rpartition(".")
        if container.metadata[key] in ("", "None", "null"):  # so some write what was not set
            continue
        try:
            value = float(container.metadata[key])
        except ValueError:
            raise LoraFileError(
                f"{container.path}: the header's {key} is no number ({brief(container.metadata[key], 40)!r}), and it "
                "would hold the scale"
            ) from None
        found.setdefault(model, {}).setdefault("lora_alpha", value)
    return found


def of_model(found: Configs, module: str) -> Mapping[str, Any] | None:
    """The configuration of a module's model; None where there is none."""
    return found.get(module.partition(".")[0], found.get(""))


def start(config: Mapping[str, Any] | None) -> Kind | None:
    """The kind of LoRA that began as a part of the base which the base's weight tells; None for any other."""
    return STARTS.get(str((config or {}).get("init_lora_weights")))


def no_update(config: Mapping[str, Any] | None) -> str | None:
    """Why a PEFT configuration says that BA is not what training changed; None where it is."""
    if config is None:
        return None
    began = str(config.get("init_lora_weights"))
    if began.startswith(_OUT_OF_THE_BASE) and began not in STARTS:
        return (
            f"its A and B began as a part of the base's own weights (init_lora_weights {brief(began, 20)!r}) that the "
            "file does not tell, and BA alone is mostly that; save it by PEFT's save_pretrained(…, "
            "path_initial_model_for_weight_conversion=…)"
        )
    return None


def blocks(config: Mapping[str, Any] | None, own: str) -> tuple[str, int] | None:
    """The factor ("A" or "B") of a module that BD-LoRA makes block-diagonal, and of how many blocks; None for neither.
    Raises ValueError where its configuration is none of PEFT's."""
    said = (config or {}).get("use_bdlora")
    if not said:
        return None
    settings = said if isinstance(said, Mapping) else {}
    count, named = settings.get("nblocks"), [settings.get(f"target_modules_bd_{side}") or [] for side in "ab"]
    if not isinstance(count, int) or not 1 <= count <= MAX_BLOCKS or not all(isinstance(each, list) for each in named):
        raise ValueError("its factors are block-diagonal (use_bdlora), and its configuration does not say how")
    leaf = own.rpartition(".")[2]
    found = [side for side, parts in zip("AB", named, strict=True) if any(str(part) in leaf for part in parts)]
    if len(found) > 1:
        raise ValueError("both its factors would be block-diagonal, which PEFT does not have")
    return (found[0], count) if found else None


def experts(config: Mapping[str, Any] | None, own: str, rows: int) -> int:
    """How many experts share the factors of a module, `rows` those of A: of PEFT's target_parameters, whose weights are
    (experts, …); 1 of any other module. Raises ValueError where that does not follow."""
    named = (config or {}).get("target_parameters")
    own = own.removeprefix("base_model.model.").replace(".base_layer", "")
    if not isinstance(named, list) or config is None:
        return 1
    above = {str(each).rpartition(".")[0] for each in named}
    if not any(own == each or own.endswith(f".{each}") for each in above):
        return 1
    rank = config.get("r")
    if isinstance(rank, int) and not isinstance(rank, bool) and rank > 0 and not config.get("rank_pattern"):
        count, rest = divmod(rows, rank)
        if not rest and count <= MAX_EXPERTS:
            return count
    raise ValueError("its target_parameters are of several experts, and how many share its factors is not sure")


def of_config(
    container: Container, module: str, own: str, kind: Kind, rank: int, config: Mapping[str, Any] | None
) -> float | None:
    """s = α/r or α/√r as a PEFT configuration says; None where it says none. Its patterns are of the names that the
    file itself gives to modules, `own`."""
    if config is None:
        return None
    name = own.removeprefix("base_model.model.").removeprefix(f"{module.partition('.')[0]}.")
    default = PEFT_ALPHA if str(config.get("peft_type")) in PEFT_TYPES else None
    alpha = _configured(
        container, config, "alpha_pattern", name, config.get("lora_alpha", config.get("alpha", default))
    )
    if kind.hidden_rank:
        rank = _configured(container, config, "rank_pattern", name, config.get("r", rank))
    if alpha is None:
        return None
    sound = all(isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v <= 1e6 for v in (alpha, rank))
    if not sound or not rank:
        raise LoraFileError(
            f"{container.path}: the scale of {brief(module)} is no sound number: α {alpha!r:.40}, r {rank!r:.40}"
        )
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _configured(container: Container, config: Mapping[str, Any], patterns: str, name: str, default: Any) -> Any:
    """The value of the first of PEFT's patterns that ends the module's name, or the default."""
    found = config.get(patterns) or {}
    if not isinstance(found, Mapping):
        raise LoraFileError(f"{container.path}: {patterns} of its configuration is no mapping: {brief(str(found), 80)}")
    for pattern, value in found.items():
        # A foreign regular expression can run for ever; what PEFT and diffusers write is names, ".*" and "\\d+".
        tokens = re.findall(r"\\\.|\.\*|\\d\+|[\w.]|.", pattern.removeprefix("^").removesuffix("$"), re.DOTALL)
        if (
            len(pattern) > 300
            or any(len(t) == 1 and not re.match(r"[\w.]", t) for t in tokens)
            or tokens.count(".*") > 3
        ):
            raise LoraFileError(
                f"{container.path}: {patterns} has a pattern that is not read here: {brief(pattern, 80)!r}"
            )
        # As PEFT: at the name's end, after a dot or at its beginning; with "^" at its beginning alone.
        before = "" if pattern.startswith("^") else r"(?:.*\.)?"
        if re.fullmatch(before + "".join(re.escape(t) if len(t) == 1 else t for t in tokens), name):
            return value
    return default


def root_of_rank(metadata: Mapping[str, str]) -> bool:
    """Whether a header says that LyCORIS trained with rs_lora."""
    try:
        said = json.loads(metadata.get("ss_network_args") or "{}")
    except (ValueError, RecursionError):
        return False
    return isinstance(said, dict) and str(said.get("rs_lora")).lower() in ("true", "1")
