"""Damaged and hostile input, for as long as you like: `make fuzz`, or `python benchmarks/fuzz.py --minutes 10`.

Each target changes sound input at random and hands it to its reader: what comes of it must be a result or the reader's
own error, printable and below a length, within bounded memory. Anything else is printed with its seed, from which
`--targets NAME --seed SEED --case NUMBER` makes it again. tests/unit/test_fuzz.py runs some cases of each.
"""

import argparse
import copy
import csv
import importlib.util
import io
import json
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
for place in (ROOT / "workflow", ROOT / "tests/support"):
    sys.path.insert(0, str(place))

from lora_atlas import tables
from lora_atlas.config import check
from lora_atlas.loras.files import LoraFileError, read_lora
from lora_atlas.pictures.decode import PictureError, decode
from lora_atlas.pictures.sources import SourceError, artists
from lora_atlas.schema import read as read_schema
from lora_atlas.study import StudyError

Rng = np.random.Generator
# A changed input in an empty folder, read: "read" or "refused"; anything raised is a fault.
Target = Callable[[Rng, Path], str]
MODULE = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
VALUES = [None, True, 0, -1, 1.5, 1e300, 2**64, float("nan"), "", "x", "x" * 5000, "../..", "\0", "\x1b[31m", [], [[]],
          {}, {"a": {}}, [None], "<script>", "(a+)+$", {"to_q": 3}, ["delta"], "no", "1e-3"]  # fmt: skip
LONGEST = 1000  # characters of a message; of a configuration it lists every problem


def pick(rng: Rng, among: Any) -> Any:
    return among[int(rng.integers(len(among)))]


def damaged(rng: Rng, data: bytes) -> bytes:
    """Bits flipped, bytes of another kind, a part left out, repeated or cut off."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(0, 9)) if data else 0):  # a file cut to nothing has no byte to change
        changed[int(rng.integers(len(changed)))] = (
            int(rng.integers(256)) if rng.random() < 0.5 else pick(rng, b"\0\xff,\n")
        )
    first, last = sorted(int(each) for each in rng.integers(len(changed) + 1, size=2))
    way = rng.random()
    if way < 0.2:
        del changed[first:]
    elif way < 0.3:
        del changed[first:last]
    elif way < 0.4:
        changed[last:last] = changed[first:last]
    return bytes(changed)


def otherwise(rng: Rng, value: Any, share: float) -> Any:
    """A value of JSON or YAML, of which about that share of leaves and keys is another."""
    if rng.random() < share:
        return copy.deepcopy(pick(rng, VALUES))
    if isinstance(value, Mapping):
        found = {key: otherwise(rng, each, share) for key, each in value.items() if rng.random() > share / 4}
        if rng.random() < share:
            found[pick(rng, ["more", "", "r", "rank", "seed", "study"])] = copy.deepcopy(pick(rng, VALUES))
        return found
    return [otherwise(rng, each, share) for each in value] if isinstance(value, list) else value


def said(error: BaseException, longest: int = LONGEST) -> str:
    """What a refusal must be: printable words, and not too many."""
    text = str(error)
    if not text or len(text) > longest or not all(line.isprintable() for line in text.splitlines()):
        raise AssertionError(f"a message of {len(text)} characters, or not printable: {text[:300]!r}") from error
    return "refused"


# --- targets


@lru_cache
def _lora_tests() -> ModuleType:
    """The mutations of LoRA files are those of their tests."""
    spec = importlib.util.spec_from_file_location("lora_mutations", ROOT / "tests/unit/loras/test_fuzz.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@lru_cache
def _sound_loras() -> tuple[bytes, ...]:
    """Files of several kinds, namings and types."""
    import lora_files as make

    found = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.safetensors")
        for n, kind in enumerate(make.KINDS):
            parts, _ = make.parts(kind, n)
            name = ("lora_unet_mid_block_resnets_0_conv1", "unet.conv_in")[n % 2]
            make.store(path, {f"{name}.{part}": x for part, x in parts.items()} | {f"{name}.alpha": np.float32(1)})
            found.append(path.read_bytes())
        found.append(make.lora(path, {MODULE: (5, 3), "unet.mid_block.resnets.0.conv1": (4, 6)}, 0).read_bytes())
    return tuple(found)


def lora(rng: Rng, folder: Path) -> str:
    """A .safetensors file of a stranger."""
    path, data = folder / "x.safetensors", pick(rng, _sound_loras())
    try:
        data = pick(rng, _lora_tests().MUTATIONS)(rng, data)
    except (KeyError, ValueError, IndexError):  # the mutation does not fit this file
        data = damaged(rng, data)
    path.write_bytes(damaged(rng, data) if rng.random() < 0.1 else data)
    return _read(path)


def _read(path: Path) -> str:
    try:
        found = read_lora(path)
    except LoraFileError as error:
        return said(error)
    assert found.updates
    return "read"


def peft(rng: Rng, folder: Path) -> str:
    """The adapter_config.json beside sound tensors."""
    import lora_files as make

    name = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {
        f"{name}.lora_A.weight": np.ones((2, 3), np.float32),
        f"{name}.lora_B.weight": np.ones((4, 2), np.float32),
    }
    make.store(folder / "adapter_model.safetensors", tensors)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {"to_q": 1}, "rank_pattern": {},
              "use_rslora": False, "use_dora": False, "bias": "none", "auto_mapping": None, "target_modules": ["to_q"],
              "init_lora_weights": True, "modules_to_save": None, "layer_replication": None}  # fmt: skip
    text = json.dumps(otherwise(rng, config, 0.1)).encode()
    (folder / "adapter_config.json").write_bytes(damaged(rng, text) if rng.random() < 0.3 else text)
    return _read(folder)


@lru_cache
def _sound_pickles() -> tuple[bytes, ...]:
    import torch

    tensors = {f"{MODULE}.lora_A.weight": torch.ones(2, 3), f"{MODULE}.lora_B.weight": torch.ones(4, 2)}
    found = []
    for archive in (True, False):
        buffer = io.BytesIO()
        torch.save(tensors, buffer, _use_new_zipfile_serialization=archive)
        found.append(buffer.getvalue())
    return tuple(found)


def pickle(rng: Rng, folder: Path) -> str:
    """A .bin file of a stranger, which a process of its own looks into."""
    (folder / "x.bin").write_bytes(damaged(rng, pick(rng, _sound_pickles())))
    return _read(folder / "x.bin")


@lru_cache
def _sound_pictures() -> tuple[bytes, ...]:
    from PIL import Image, features

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8))
    found = []
    for name in ("PNG", "JPEG", "GIF", "TIFF", "BMP", *(["WEBP"] if features.check("webp") else [])):
        buffer = io.BytesIO()
        image.save(buffer, name)
        found.append(buffer.getvalue())
    return tuple(found)


def picture(rng: Rng, folder: Path) -> str:
    """A picture of the network."""
    try:
        assert decode(damaged(rng, pick(rng, _sound_pictures())), min_side=1).mode == "RGB"
    except PictureError as error:
        return said(error)
    return "read"


def manifest(rng: Rng, folder: Path) -> str:
    """A CSV of URLs."""
    from asked import FOLDER

    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["artist", "url", "genre", "sha256", "licence"])
    for n in range(6):
        writer.writerow([f"artist {n % 2}", f"https://example.org/{n}", "genre", "", "CC0"])
    (folder / "m.csv").write_bytes(damaged(rng, text.getvalue().encode()))
    try:
        artists(FOLDER | {"source": "manifest", "manifest": str(folder / "m.csv"), "store": str(folder)}, None)
    except SourceError as error:
        return said(error)
    return "read"


@lru_cache
def _configuration() -> tuple[dict[str, Any], Any]:
    import yaml

    return yaml.safe_load((ROOT / "config.yaml").read_text()), read_schema()


def config(rng: Rng, folder: Path) -> str:
    """config.yaml."""
    sound, schema = _configuration()
    share, changed = pick(rng, [0.003, 0.02]), None
    while not isinstance(changed, dict):  # of another file than keys and values Snakemake has its own error
        changed = otherwise(rng, sound, share)
    try:
        check(changed, schema, ROOT)
    except StudyError as error:
        return said(error, 100_000)
    return "read"


@lru_cache
def _sound_table() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            {"lora": f"maren/{n:02}", "step": n, "loss": n / 7, "gradient_norm": None, "seconds": 0.5} for n in range(9)
        ]
        tables.write(Path(folder, "t.parquet"), "training_log", rows)
        return Path(folder, "t.parquet").read_bytes()


def table(rng: Rng, folder: Path) -> str:
    """A Parquet file that a disk or a copy has damaged: refused, or with every row as it was."""
    for name, data in (("good", _sound_table()), ("bad", damaged(rng, _sound_table()))):
        (folder / name).write_bytes(data)
    try:
        found = tables.read(folder / "bad", "training_log")
    except tables.TableError as error:
        return said(error)
    assert found.to_pylist() == tables.read(folder / "good", "training_log").to_pylist()
    return "read"


TARGETS: dict[str, Target] = {
    "lora": lora, "peft": peft, "pickle": pickle, "picture": picture, "manifest": manifest, "config": config,
    "table": table,
}  # fmt: skip


# --- running them


def case(name: str, seed: int, number: int) -> str:
    """One changed input of a target, which seed and number decide."""
    with tempfile.TemporaryDirectory() as folder:
        return TARGETS[name](np.random.default_rng([seed, sorted(TARGETS).index(name), number]), Path(folder))


def run(name: str, seed: int, seconds: float) -> tuple[Counter, int]:
    """Cases until the time is over; returns how many were read, refused or faults, and the growth of memory (bytes)."""
    seen: Counter = Counter()
    before, until, number = 0, time.monotonic() + seconds, 0
    while time.monotonic() < until:
        number += 1
        before = before or (_memory() if number > 1 else 0)  # once the first case has loaded what it needs
        try:
            seen[case(name, seed, number)] += 1
        except Exception:  # noqa: BLE001 - what is looked for
            seen["faults"] += 1
            print(f"{name}: --targets {name} --seed {seed} --case {number}\n{traceback.format_exc()}", flush=True)
    return seen, _memory() - (before or _memory())


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="of each target")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--targets", nargs="+", choices=sorted(TARGETS), default=sorted(TARGETS))
    parser.add_argument("--case", type=int, help="one case again, with its traceback")
    given = parser.parse_args()
    faults = 0
    for name in given.targets:
        if given.case is not None:
            print(name, case(name, given.seed, given.case))
            continue
        seen, grown = run(name, given.seed, 60 * given.minutes)
        faults += seen["faults"] + (grown > 2**30)
        print(
            f"{name:10} seed {given.seed}: {seen['read']} read, {seen['refused']} refused, {seen['faults']} faults; "
            f"memory grew by {grown / 2**20:.0f} MiB",
            flush=True,
        )
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
