"""What a study is about: what its pictures are, and what its base and its extractors learnt from, in sentences.

A folder of models can say it of them: an ``about.yaml`` beside them, the name of each model's folder with a few words.
Of a model that nobody says anything of, the page says so, since a specialist that learnt these very pictures is no
judge of them.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from yaml import YAMLError

from ..descriptors import looks
from ..keys import read_yaml
from ..pictures import sources
from ..sections import Pictures
from ..study import StudyError


def sentences(config: Mapping[str, Any], root: Path) -> list[str]:
    """The sentences of a checked configuration, whose relative models are seen from `root`.

    Raises StudyError for an about.yaml that cannot be read.
    """
    pictures, base = Pictures(**config["pictures"]), config["base"]["model"]
    side = config["training"]["resolution"]
    found = [f"The pictures are {sources.source(pictures).about}, trained on at {side} pixels."]
    found.append(f"The base `{named(base, root)}` learnt from {_learnt(base, root)}.")
    return found + list(_extractors(config["extractors"], root))


def named(model: str, root: Path) -> str:
    """A model as a page calls it: a folder by its last two parts, since many bases lie in a folder called base; what is
    none by its id on the hub."""
    return "/".join(Path(model).parts[-2:]) if (root / model).is_dir() else model


def _extractors(extractors: Mapping[str, Any], root: Path) -> Iterator[str]:
    for name, extractor in extractors.items():
        if not looks(extractor):
            continue
        model = extractor["model"]
        tag = f", {extractor['pretrained']}" if extractor["pretrained"] else ""
        yield f"The extractor `{name}` ({extractor['library']}{tag}) learnt from {_learnt(model, root)}."


def _learnt(model: str, root: Path) -> str:
    folder = root / model
    told = folder.parent / "about.yaml"
    if folder.is_dir() and told.is_file():
        try:
            known = read_yaml(told.read_text(encoding="utf-8")) or {}
        except (ValueError, YAMLError) as error:
            why = " ".join(str(error).split())
            raise StudyError(f"{told}: not YAML of a model's folder and a few words in quotes ({why[:120]})") from None
        if isinstance(known, dict) and folder.name in known:
            return str(known[folder.name])
    return f"what its authors say of {model.removeprefix('hf-hub:')}; nothing beside it says it here"
