"""This version beside an older one: the demo, the weights engine, a folder, a query and the evaluation, in turns.

    python benchmarks/against.py 654ca17                       # all rows, twice in turns
    python benchmarks/against.py 654ca17 --rows start factors  # some of them
    python benchmarks/against.py 654ca17 --folder LORAS        # a folder of real LoRA files for the rows of folders

The older revision is laid out beside this one and run in the same environment: old code, today's packages. Every
measurement is a process of its own (Snakemake with all its jobs, where a row is of Snakemake); the number is processor
time of it and its children, one thread each, the least of the rounds. The engine's rows leave imports out, as
benchmarks/weights.py does, and are told as multiples of merely reading the same files in this run. Where a revision
cannot do a row, the row says so.
"""

import argparse
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import weights as made
import yaml

FAILED = "cannot be run"
# Row → kernel or engine, LoRAs, rank, and which of SDXL's attention layers: every so-manieth, at high ranks.
ENGINE = {
    "read": ("read", 32, 16, 1),
    "factors": ("factors", 32, 16, 1),
    "sketch": ("sketch", 16, 16, 1),
    "delta16": ("delta", 32, 16, 1),
    "delta128": ("delta", 32, 128, 14),
    "delta128x128": ("delta", 128, 128, 14),
}
WORDS = {
    "start": "a dry run on a folder: Snakemake's start with our rules",
    "inventory": "the inventory of a folder, Snakemake's start included",
    "folder": "the rest of the folder: until everything is there",
    "added": "one file is added: all of it again",
    "query": "query of one file against the folder",
    "read": "reading the tensors: N = 32, rank 16",
    "factors": "Gram matrix of raw factors: N = 32, rank 16",
    "sketch": "one sketch a file, written: N = 16, rank 16",
    "delta16": "exact Gram matrix of updates: N = 32, rank 16",
    "delta128": "the same: N = 32, rank 128, every 14th layer",
    "delta128x128": "the same: N = 128, rank 128, every 14th layer",
    "grid": "the grid job: 1,000 LoRAs × 12 descriptors",
    "evaluation": "the whole evaluation at that size",
    "plan": "a dry run of a study of 10,000 LoRAs, peak memory in GiB beside it",
    "demo": "the embedded study, from nothing, on two cores; the clock beside it",
    "alike": "the same, asked for no more than the older one makes",
}
EVALUATION = ("grid", "clustering", "structure", "retrieval", "worth")


def laid_out(revision: str, folder: Path) -> Path:
    """The files of a revision in a folder."""
    archive = subprocess.run(["git", "-C", ROOT, "archive", revision], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return folder


def children(command: list, folder: Path) -> tuple[float, float, float] | None:
    """Processor seconds of a command and all that it starts, the peak of its largest process (GiB), and the clock's
    seconds; None where it fails."""
    environment = {**os.environ, **{f"{n}_NUM_THREADS": "1" for n in ("OMP", "OPENBLAS", "MKL")}}
    waiting = (
        "import json, resource, subprocess, sys\n"
        "rc = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(json.dumps([rc, used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20]))"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", waiting, *map(str, command)], cwd=folder, env=environment, capture_output=True, text=True
    )
    clock = time.perf_counter() - start
    code, seconds, peak = json.loads(done.stdout.splitlines()[-1])
    if code:
        print(done.stderr[-1500:], file=sys.stderr, flush=True)
        return None
    return seconds, peak, clock


def snakemake(root: Path, *said: str, cores: int = 1) -> list:
    return [sys.executable, "-m", "snakemake", "-s", root / "Snakefile", "--cores", str(cores), *said]


def real_like(folder: Path, count: int) -> Path:
    """A folder of LoRA files as people have them: SD1.5 at rank 4 and SDXL's text side, in two spellings, of random
    factors."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        kohya, tensors = number % 2, {}
        for block, width in (("down_blocks.0", 320), ("down_blocks.1", 640), ("down_blocks.2", 1280)):
            for at in range(2):
                for attention, text in (("attn1", width), ("attn2", 768)):
                    stem = f"{block}.attentions.{at}.transformer_blocks.0.{attention}"
                    shapes = {"to_q": width, "to_k": text, "to_v": text, "to_out.0": width}
                    for leaf, into in shapes.items():
                        name = f"{stem}.{leaf}"
                        A, B = (rng.standard_normal(s).astype(np.float16) for s in ((4, into), (width, 4)))
                        if kohya:
                            name = f"lora_unet_{name.replace('.', '_')}"
                            pair = {"lora_down.weight": A, "lora_up.weight": B, "alpha": np.array(4, np.float16)}
                        else:
                            name, pair = f"unet.{name}", {"lora_A.weight": A, "lora_B.weight": B}
                        tensors |= {f"{name}.{part}": value for part, value in pair.items()}
        save_file(tensors, folder / f"{number:03d}.safetensors")
    return folder


def at_home(root: Path, place: Path) -> None:
    """What older revisions look for in the working directory: their defaults, code and environments."""
    if not (place / "config.yaml").exists():
        shutil.copy(root / "config.yaml", place)
        for name in ("workflow", "envs"):
            (place / name).symlink_to(root / name)


def of_folder(root: Path, files: Path, row: str, place: Path) -> tuple[float, float, float] | None:
    """The rows of a folder, in their order and in one working directory."""
    own, asked = place / "files", place / "asked.safetensors"
    if not own.is_dir():
        own.mkdir(parents=True)
        *known, last = sorted(each for each in files.rglob("*") if each.suffix in (".safetensors", ".bin", ".pt"))
        for each in known:
            (own / each.name).symlink_to(each.resolve())
        shutil.copy(last, asked)
        at_home(root, place)
    if row == "added":
        shutil.copy(asked, own / "added.safetensors")
    config = ["--configfile", root / "workflow/studies/my_loras.yaml", "--config", f"folder={own}", "study=mine"]
    said = {
        "start": ["-n", *config],
        "inventory": [*config, "--", "inventory"],
        "query": [*config, f"query={asked}", "--", "query"],
    }
    return children(snakemake(root, *map(str, said.get(row, config))), place)


def of_plan(root: Path, place: Path) -> tuple[float, float, float] | None:
    """A dry run of 24 painted artists with 417 LoRAs each."""
    place.mkdir(parents=True, exist_ok=True)
    at_home(root, place)
    plan = f"plan={{gallery: {[4] * 400}, query: {[4] * 17}}}"
    config = ["study=plan", "pictures={artists_per_genre: 4}", plan]
    return children(snakemake(root, "-n", "-q", "--config", *config), place)


def of_demo(root: Path, place: Path, older: Path | None = None) -> tuple[float, float, float] | None:
    """What `make demo` runs, in an empty folder; of what the configuration of an `older` revision does not know, the
    costly parts are left out."""
    place.mkdir(parents=True, exist_ok=True)
    at_home(root, place)
    said = []
    if older is not None:
        mine, its = (yaml.safe_load((each / "config.yaml").read_text()) for each in (root, older))
        less = {
            "generation": {} if "worth" in its["generation"] else {"worth": None},
            "extractors": dict.fromkeys(mine["extractors"].keys() - its["extractors"].keys()),
            "weights": {} if "modules" in its["weights"] else {"modules": ["plain"]},
        }
        (place / "less.yaml").write_text(yaml.safe_dump(less))
        said = ["--configfile", "less.yaml"]
    return children(snakemake(root, *said, cores=2), place)


def of_engine(root: Path, row: str, folder: Path) -> tuple[float, float] | None:
    what, count, rank, _ = ENGINE[row]
    files = folder / f"rank{rank}"
    command = [sys.executable, __file__, str(root), "--inside", what, "--folder", str(files), "--count", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        print(done.stderr[-1500:], file=sys.stderr, flush=True)
        return None
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def inside(root: Path, what: str, files: Path, count: int) -> None:
    """One measurement, in a process that imports that revision's library."""
    sys.path.insert(0, str(root / "workflow"))
    if what in EVALUATION:
        sys.path.insert(0, str(root / "benchmarks"))
        import metrics

        # Inputs are made beforehand, and there is one thread; either revision reads the clock, and here it is to be the
        # processor's.
        metrics.time = SimpleNamespace(perf_counter=time.process_time)
        _, seconds, peak = metrics.run(what, count, 12, 1000)
        print(json.dumps([seconds, peak]))
        return
    import scipy.fft  # noqa: F401 - outside of the clock

    from lora_atlas.weights.engine import sketched
    from lora_atlas.weights.gram import gram

    paths = sorted(files.glob("*.safetensors"))[:count]
    start = time.process_time()
    if what == "read":
        made.read(paths)
    elif what == "sketch":
        with tempfile.TemporaryDirectory(dir=files) as folder:
            sketched(paths, [str(n) for n in range(len(paths))], folder)
    else:
        gram(paths, what)
    print(json.dumps([time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20]))


def prepared(rows: list[str], folder: Path) -> None:
    """The files of the engine's rows."""
    every_layer = made.modules()
    for rank in {ENGINE[row][2] for row in rows if row in ENGINE}:
        asked = [ENGINE[row] for row in rows if row in ENGINE and ENGINE[row][2] == rank]
        chosen = dict(list(every_layer.items())[:: asked[0][3]])
        made.RANK, made.modules = rank, lambda chosen=chosen: chosen
        place = folder / f"rank{rank}"
        place.mkdir(parents=True, exist_ok=True)
        made.generate(place, max(count for _, count, _, _ in asked))


def measured(
    root: Path, row: str, place: Path, folder: Path, files: Path | None, older: Path | None
) -> tuple[float, ...] | None:
    if row in ENGINE:
        return of_engine(root, row, folder)
    if row in ("demo", "alike"):
        return of_demo(root, place / row, older if row == "alike" else None)
    if row == "plan":
        return of_plan(root, place / "plan")
    if row in ("grid", "evaluation"):
        jobs = EVALUATION if row == "evaluation" else ("grid",)
        found = []
        for job in jobs:
            command = [sys.executable, __file__, root, "--inside", job, "--count", "1000"]
            found.append(children(command, folder))
        return None if None in found else (sum(each[0] for each in found), max(each[1] for each in found))
    assert files is not None
    return of_folder(root, files, row, place)


def table(rows: list[str], found: dict[str, dict[str, list]], revision: str) -> str:
    lines = [f"| processor seconds | {revision} | this | ratio |", "| --- | ---: | ---: | ---: |"]
    reading = [each[0] for each in found.get("this", {}).get("read", []) if each]
    for row in rows:
        cells, least = [], []
        for side in ("old", "this"):
            known = [each for each in found[side][row] if each]
            seconds = min((each[0] for each in known), default=None)
            least.append(seconds)
            cell = FAILED if seconds is None else f"{seconds:.2f}"
            if seconds is not None and reading and row in ("factors", "sketch", "delta16"):
                cell += f" ({seconds / (min(reading) * ENGINE[row][1] / 32):.1f}× reading)"
            if seconds is not None and row == "plan":
                cell += f" ({min(each[1] for each in known):.2f} GiB)"
            if seconds is not None and row in ("demo", "alike"):
                cell += f" (clock {min(each[2] for each in known):.0f} s)"
            cells.append(cell)
        ratio = f"{least[0] / least[1]:.2f}×" if None not in least else ""
        lines.append(f"| {WORDS[row]} | {cells[0]} | {cells[1]} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", help="the older revision")
    parser.add_argument("--rows", nargs="+", choices=list(WORDS), default=list(WORDS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="of LoRA files, for the rows of folders; else some are made")
    parser.add_argument("--count", type=int, default=133, help="files that are made, where none are named")
    parser.add_argument("--scratch", type=Path, help="where files are made and kept; a temporary folder without it")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        inside(Path(asked.revision), asked.inside, asked.folder, asked.count)
        return
    rows = [row for row in WORDS if row in asked.rows]  # rows of a folder rest on those before
    if asked.scratch:
        asked.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=asked.scratch) as temporary:
        scratch = Path(temporary)
        kept = asked.scratch or scratch
        roots = {"old": laid_out(asked.revision, scratch / "old"), "this": ROOT}
        prepared(rows, kept)
        files = None
        if {"start", "inventory", "folder", "added", "query"} & set(rows):
            files = asked.folder or real_like(kept / "loras", asked.count)
        found: dict[str, dict[str, list]] = {side: {row: [] for row in rows} for side in roots}
        for round_ in range(asked.rounds):
            for row in rows:
                for side, root in roots.items():
                    if (side, row) == ("old", "alike") and "demo" in rows:  # it is the demo of the older one
                        found[side][row].append(found[side]["demo"][round_])
                        continue
                    older = roots["old"] if side == "this" else None
                    result = measured(root, row, scratch / f"{side}{round_}", kept, files, older)
                    found[side][row].append(result)
                    print(side, row, result, flush=True)
        print(table(rows, found, asked.revision))


if __name__ == "__main__":
    main()
