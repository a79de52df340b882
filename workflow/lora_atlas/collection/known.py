"""Collections of LoRAs that a query can be held against: what a study's results folder knows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np

from ..descriptors import CONSENSUS, GRADIENT, PLAIN
from ..loras.container import LoraFileError, digest
from ..loras.families import Belonging, belonging
from ..loras.files import LoraFile, open_lora
from ..loras.folder import located
from ..tables import TableError, read
from ..weights.gram import GramError, Grams, read_gram, read_header
from ..weights.metric import read_metric
from ..weights.modules import read_modules, stacked_grams
from ..weights.sketch import NUMBERS, Sketch, read_sketch, sketch, sketch_path
from ..weights.weighting import module_weights, weighted_sum

Shapes = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Known:
    """A collection that can be asked: LoRAs of one space, their files, and the Gram matrices between them.

    `sketches`: their paths, in the same order, where the matrices are of sketches of at most `numbers` numbers; None
    where they are exact. `weighted`: the same matrices with modules weighted by `modules` (module → weight), which say
    what is near what; without them modules count as they are.
    """

    space: str
    loras: Sequence[str]
    files: Sequence[LoraFile]
    artists: Sequence[str | None]
    genres: Sequence[str | None]
    grams: Grams
    sketches: Sequence[str | Path] | None = None
    numbers: int | None = None
    weighted: Grams | None = None
    modules: Mapping[str, float] | None = None

    @property
    def nearness(self) -> Grams:
        """The matrices that distances are made of."""
        return self.grams if self.weighted is None else self.weighted

    @cached_property
    def shapes(self) -> Shapes:
        """Module → (out, in), of all its files."""
        return {module: spec.shape for file in self.files for module, spec in file.layout.specs.items()}

    @cached_property
    def places(self) -> list[Path]:
        """Where its files are, links followed."""
        return [file.path.resolve() for file in self.files]

    def sketch(self, n: int) -> Sketch:
        """The sketch of the n-th: the one that is kept, where there is one, else one that is made."""
        if self.sketches and Path(self.sketches[n]).is_file():
            return read_sketch(self.sketches[n])
        return sketch(self.files[n], numbers=self.numbers or NUMBERS)

    @cached_property
    def belongs(self) -> Belonging:
        """The family of its files, and the released models that all of them fit."""
        found = [
            belonging({module: spec.shape for module, spec in file.layout.specs.items()}, file.container.metadata)
            for file in self.files
        ]
        return reduce(Belonging.among, found)


def collections(
    results: str | Path,
    *,
    weighting: str = PLAIN,
    folder: str | Path | None = None,
    pickles: bool = True,
    base: str | None = None,
) -> list[Known]:
    """The collections of a study's results folder: one a space of a folder of LoRAs, or the LoRAs that it trained,
    whose modules then count by `weighting` (those that give a module one number: gradient, consensus; else as they
    are). `folder`: where the LoRA files are, below which the study's table names them.

    Raises GramError where the study has no weights yet, LoraFileError where a file of it is gone.
    """
    results = Path(results)
    options = {"pickles": pickles, "base": base}
    if (results / "tables" / "loras.parquet").is_file():
        rows = [row for row in read(results / "tables" / "loras.parquet", "loras").to_pylist() if row["space"]]
        if folder is None:
            raise GramError(
                f"{results}: results of a folder of LoRA files name them by their paths below it, and do not say where "
                "it is; name it (folder=…)"
            )
        rows = located(folder, rows)
        spaces = sorted({row["space"] for row in rows})
        return [
            _known(space, [r for r in rows if r["space"] == space], results / "spaces" / space, options)
            for space in spaces
        ]
    try:
        plan = read(results / "plan.parquet", "plan").to_pylist()
    except TableError as error:
        raise GramError(f"{results}: no LoRAs to compare with; run the study first ({error})") from error
    rows = [{**row, "file": str(results / "loras" / f"{row['lora']}.safetensors")} for row in plan]
    known = _known("study", rows, results, options)
    single = results / "weights" / "modules" / "all.safetensors"
    if weighting not in (GRADIENT, CONSENSUS) or not single.is_file():
        return [known]
    ids, grams, _ = read_modules(single)
    if ids != known.loras:
        raise GramError(f"{single}: its LoRAs are not those of the study any more; run the study again")
    names = sorted(grams["delta"])
    base_weights = read_metric(single.with_name("base.safetensors")).weights if weighting == GRADIENT else None
    gallery = np.flatnonzero([row["split"] == "gallery" for row in rows])
    w = module_weights(weighting, names, stacked_grams(grams["delta"], names), gallery, base=base_weights)
    modules = dict(zip(names, w.tolist(), strict=True))
    return [replace(known, weighted=weighted_sum(grams["delta"], modules), modules=modules)]


def _known(space: str, rows: Sequence[Mapping[str, Any]], folder: Path, options: Mapping[str, Any]) -> Known:
    path = folder / "weights" / "delta.safetensors"
    ids, grams = read_gram(path, "delta")
    if ids != [row["lora"] for row in rows]:
        raise GramError(f"{path}: its LoRAs are not those of the study any more; run the study again")
    header = read_header(path)
    files = []
    for row in rows:
        try:
            files.append(open_lora(row["file"], **options))
        except LoraFileError as error:
            raise LoraFileError(f"{error}; it was there when the study ran: run the study again") from error
    kept = None
    if header["engine"] == "sketch":
        where = path.parent / header["sketches"]
        kept = [
            sketch_path(where, row["sha256"] if "sha256" in row else digest(row["file"]), header["numbers"])
            for row in rows
        ]
    artists, genres = [row["artist"] for row in rows], [row["genre"] for row in rows]
    weighted, modules = read_weighted(path.with_name("weighted.safetensors"), ids)
    return Known(space, ids, files, artists, genres, grams, kept, header.get("numbers"), weighted, modules)


def read_weighted(path: str | Path, ids: Sequence[str]) -> tuple[Grams | None, Mapping[str, float] | None]:
    """Matrices with weighted modules, and the weights, beside those that weigh alike; None where there are none.

    Raises GramError where they are of other LoRAs.
    """
    if not Path(path).is_file():
        return None, None
    have, grams = read_gram(path, "delta")
    if have != list(ids):
        raise GramError(f"{path}: its LoRAs are not those of the study any more; run the study again")
    modules = read_header(path).get("modules")
    return (None, None) if modules is None else (grams, modules)
