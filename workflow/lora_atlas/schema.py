"""The schema of the configuration, whose lists of names are those of the library's own registries.

Where workflow/schemas/config.schema.yaml says ``registry: NAME`` it means the names that REGISTRIES has of it, so that
a kernel, a source or a distance that is added in its one place can be asked for.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .code import PROJECT
from .descriptors import BY_GRADIENT, SCALES, WEIGHTINGS
from .diffusion.targets import TARGETS
from .embeddings.components import CALIBRATIONS
from .embeddings.describe import WEIGHT_CONTROLS
from .features.extract import EXTRACTORS
from .keys import read_yaml
from .loras.names import BLOCKS, COMPONENTS
from .metrics.ranking import DISTANCES
from .pictures.sources import SOURCES
from .study import CONTENTS
from .views import BASES
from .weights.gram import KERNELS

SCHEMA = PROJECT / "workflow/schemas/config.schema.yaml"
OTHER = "other"  # what names.component and names.block say of a module that they do not know

REGISTRIES: dict[str, list[str]] = {
    "sources": list(SOURCES),
    "contents": list(CONTENTS),
    "targets": list(TARGETS),
    "libraries": [*EXTRACTORS, BY_GRADIENT],
    "kernels": list(KERNELS),
    "weight_controls": list(WEIGHT_CONTROLS),
    "module_weightings": list(WEIGHTINGS),
    "scales": list(SCALES),
    "components": [*COMPONENTS, OTHER],
    "blocks": [*BLOCKS, OTHER],
    "calibrations": list(CALIBRATIONS),
    "bases": list(BASES),
    "distances": list(DISTANCES),
}


def read(path: str | Path = SCHEMA) -> dict[str, Any]:
    """The schema with every registry's names in place. Raises KeyError for a registry that does not exist."""
    return _filled(read_yaml(Path(path).read_text(encoding="utf-8")))


def _filled(schema: Any) -> Any:
    if isinstance(schema, Mapping):
        found = {key: _filled(value) for key, value in schema.items() if key != "registry"}
        if isinstance(schema.get("registry"), str):
            found["enum"] = REGISTRIES[schema["registry"]]
        return found
    return [_filled(each) for each in schema] if isinstance(schema, list) else schema
