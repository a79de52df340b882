"""The weights engine beside what one would write without it, in one run on generated SDXL LoRA files.

    python benchmarks/weights.py            # N = 16 to 128, about a quarter of an hour, 6 GB of disk, 13 GB of memory
    python benchmarks/weights.py --most 32  # smaller

560 attention layers of SDXL at rank 16 in float16, 46 MB a file. Every route is a process of its own on the same
threads, reads the files itself (page cache warm) and ends with 16 principal components. Ratios are to merely reading
the tensors.
Writes the section "Weights" of benchmarks/RESULTS.md. With a finished embedded study (results/demo) also what sketches
lose there.
"""

import argparse
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow"))

import numpy as np

THREADS = os.cpu_count() or 1
RANK, DIMENSIONS = 16, 16


def modules() -> dict[str, tuple[int, int]]:
    """The attention layers of SDXL's UNet: name → (out, in)."""
    blocks = {
        **{f"down_blocks.1.attentions.{a}": (640, 2) for a in range(2)},
        **{f"down_blocks.2.attentions.{a}": (1280, 10) for a in range(2)},
        "mid_block.attentions.0": (1280, 10),
        **{f"up_blocks.0.attentions.{a}": (1280, 10) for a in range(3)},
        **{f"up_blocks.1.attentions.{a}": (640, 2) for a in range(3)},
    }
    found = {}
    for block, (width, depth) in blocks.items():
        for layer in range(depth):
            for attention, text in (("attn1", width), ("attn2", 2048)):
                stem = f"unet.{block}.transformer_blocks.{layer}.{attention}"
                found |= {f"{stem}.to_q": (width, width), f"{stem}.to_out.0": (width, width)}
                found |= {f"{stem}.to_k": (width, text), f"{stem}.to_v": (width, text)}
    return found


def generate(folder: Path, count: int) -> list[Path]:
    """Files of random factors."""
    from safetensors.numpy import save_file

    paths = []
    for number in range(count):
        path = folder / f"{number:03d}.safetensors"
        if not path.is_file():
            rng = np.random.default_rng(number)
            tensors = {}
            for module, (out, width) in modules().items():
                tensors[f"{module}.lora_A.weight"] = rng.standard_normal((RANK, width), np.float32).astype(np.float16)
                tensors[f"{module}.lora_B.weight"] = rng.standard_normal((out, RANK), np.float32).astype(np.float16)
            save_file(tensors, path)
        paths.append(path)
    return paths


# --- routes: paths → something with 16 components of each LoRA


def read(paths):
    """Every tensor, as it is stored."""
    from safetensors import safe_open

    total = 0
    for path in paths:
        with safe_open(path, "np") as file:
            for key in file.keys():  # noqa: SIM118
                total += file.get_tensor(key).nbytes
    return np.zeros((len(paths), DIMENSIONS)) + total


def _components(K):
    from lora_atlas.embeddings.components import together
    from lora_atlas.weights.products import normalise

    return together(normalise(K, "unit"), DIMENSIONS)


def factors(paths):
    """Ours: Gram matrix of raw factors."""
    from lora_atlas.weights.gram import gram
    from lora_atlas.weights.products import combine

    return _components(combine(gram(paths, "factors")))


def delta(paths):
    """Ours: exact Gram matrix of updates."""
    from lora_atlas.weights.gram import gram
    from lora_atlas.weights.products import combine

    return _components(combine(gram(paths, "delta")))


def sketch(paths):
    """Ours: one sketch a file, written and read back."""
    from lora_atlas.weights.engine import sketched
    from lora_atlas.weights.products import combine
    from lora_atlas.weights.sketch import sketch_files_gram

    with tempfile.TemporaryDirectory(dir=Path(paths[0]).parent) as folder:
        kept = sketched(paths, [str(n) for n in range(len(paths))], folder)
        return _components(combine(sketch_files_gram(kept)))


def _dense(paths):
    """All raw factors as rows (N, 23.2 million) float32."""
    from safetensors import safe_open

    X = None
    for row, path in enumerate(paths):
        with safe_open(path, "np") as file:
            values = np.concatenate([file.get_tensor(key).ravel() for key in sorted(file.keys())])
        X = np.empty((len(paths), len(values)), np.float32) if X is None else X
        X[row] = values
    return X


def dense_gram(paths):
    """Dense matrix, X·Xᵀ, eigenvectors."""
    X = _dense(paths)
    return _components((X @ X.T).astype(np.float64))


def pca_full(paths):
    """scikit-learn: PCA(svd_solver="full") on the dense matrix."""
    from sklearn.decomposition import PCA

    return PCA(DIMENSIONS, svd_solver="full").fit_transform(_dense(paths))


def pca_randomized(paths):
    """scikit-learn: PCA(svd_solver="randomized") on the dense matrix."""
    from sklearn.decomposition import PCA

    return PCA(DIMENSIONS, svd_solver="randomized", random_state=0).fit_transform(_dense(paths))


def pca_incremental(paths):
    """scikit-learn: IncrementalPCA, 16 LoRAs at a time."""
    from sklearn.decomposition import IncrementalPCA

    model = IncrementalPCA(DIMENSIONS)
    for start in range(0, len(paths), DIMENSIONS):
        model.partial_fit(_dense(paths[start : start + DIMENSIONS]))
    starts = range(0, len(paths), DIMENSIONS)
    return np.concatenate([model.transform(_dense(paths[start : start + DIMENSIONS])) for start in starts])


OURS = {"read": read, "factors": factors, "delta": delta, "sketch": sketch}
DENSE = {
    "dense_gram": dense_gram,
    "pca_full": pca_full,
    "pca_randomized": pca_randomized,
    "pca_incremental": pca_incremental,
}
DENSE_LIMIT = 32  # LoRAs for which a full PCA fits into 24 GiB


def measure(route: str, folder: Path, count: int) -> dict | None:
    """Seconds of the work (imports apart) and peak resident memory of one process; None where that was too much."""
    command = [sys.executable, __file__, "--route", route, "--folder", str(folder), "--most", str(count)]
    threads = {f"{name}_NUM_THREADS": str(THREADS) for name in ("OMP", "OPENBLAS", "MKL")}
    done = subprocess.run(
        command, env={**os.environ, **threads, "OMP_WAIT_POLICY": "PASSIVE"}, capture_output=True, text=True
    )
    if done.returncode == -signal.SIGKILL:  # what Linux does to a process that wants more memory than there is
        return None
    if done.returncode:
        raise RuntimeError(f"{route}, N = {count}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run_route(route: str, folder: Path, count: int) -> None:
    import sklearn.decomposition  # noqa: F401 - outside of the clock, for all routes alike

    import lora_atlas.weights.sketch  # noqa: F401

    work = {**OURS, **DENSE}[route]
    paths = sorted(folder.glob("*.safetensors"))[:count]
    start = time.perf_counter()
    vectors = work(paths)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": seconds, "gigabytes": peak, "loras": len(vectors)}))


# --- what a sketch loses, on the embedded study


def two_sided(update, k):
    """S ΔW Tᵀ with random signs, the usual alternative."""
    from lora_atlas.seeds import derive_seed

    out, width = update.shape
    rng = np.random.default_rng(derive_seed("two-sided", update.module))
    S = (2 * rng.integers(0, 2, (k, out)) - 1) / np.sqrt(k)
    T = (2 * rng.integers(0, 2, (k, width)) - 1) / np.sqrt(k)
    return (S @ update.B) @ (update.A @ T.T)


def losses(results: Path) -> list[dict]:
    """mAP of the embedded study's queries by sketches of several sizes: cross-fitted components, and whole updates."""
    from lora_atlas import tables
    from lora_atlas.embeddings.components import embed
    from lora_atlas.loras.files import read_lora
    from lora_atlas.metrics.ranking import average_precision
    from lora_atlas.weights.gram import gram
    from lora_atlas.weights.products import combine, normalise
    from lora_atlas.weights.sketch import Hashes, project

    plan = tables.read(results / "plan.parquet", "plan").to_pylist()
    paths = [results / "loras" / f"{row['lora']}.safetensors" for row in plan]
    loras = [read_lora(path).updates for path in paths]
    artists = np.array([row["artist"] for row in plan])
    gallery = np.array([row["split"] == "gallery" for row in plan])
    names = sorted(set().union(*loras))

    def score(K):
        K = normalise(K, "unit")
        vectors = embed(K, gallery, DIMENSIONS, ["crossfit"], folds=5, seed=0)["crossfit"].vectors
        found = []
        for D in (np.square(vectors[:, None] - vectors[None]).sum(-1), 2 - 2 * K):
            order = np.argsort(D[~gallery][:, gallery], 1)
            hits = (artists[gallery][order] == artists[~gallery][:, None]).astype(float)
            found.append(float(average_precision(hits).mean()))
        return found

    exact = normalise(combine(gram(paths, "delta")), "unit")
    rows = [{"kind": "exact", "numbers": 0, "error": 0.0, "mAP": score(exact)}]
    hashes = Hashes()
    kinds = {
        "TensorSketch": ([256, 1024, 4096, 8192], lambda update, D: project(update, D, hashes)),
        "two-sided signs": ([16, 32, 64, 90], lambda update, k: two_sided(update, k).ravel()),
    }
    for kind, (sizes, of) in kinds.items():
        for size in sizes:
            X = np.stack([np.concatenate([of(updates[name], size) for name in names]) for updates in loras]).astype(
                float
            )
            K = normalise(X @ X.T, "unit")
            error = float(np.sqrt(np.mean(np.square(K - exact))))
            rows.append({"kind": kind, "numbers": X.shape[1], "error": error, "mAP": score(K)})
    return rows


# --- the report


def machine() -> str:
    model = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    return f"{THREADS} cores ({model or platform.machine()}), {date.today().isoformat()}"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []


def section(found: dict[str, dict[int, dict]], lost: list[dict]) -> str:
    counts = sorted(found["read"])
    lines = [f"Generated SDXL LoRAs of rank 16 (560 modules, 23.2 M parameters, float16), {machine()}.", ""]
    lines += ["Seconds, as a multiple of merely reading the tensors in the same run, and peak memory (GiB):", ""]
    lines += ["| route | " + " | ".join(f"N = {n}" for n in counts) + " |", "| --- |" + " ---: |" * len(counts)]
    for route, rows in found.items():
        cells = []
        for n in counts:
            if n not in rows:
                cells.append("")
                continue
            row = rows[n]
            if row is None:
                cells.append("out of memory")
                continue
            ratio = row["seconds"] / found["read"][n]["seconds"]
            cells.append(f"{row['seconds']:.2f} s · {ratio:.1f}× · {row['gigabytes']:.2f}")
        does = {**OURS, **DENSE}[route].__doc__.rstrip(".")
        lines.append(f"| {does} | " + " | ".join(cells) + " |")
    n = max(set(found["pca_full"]))
    best = min(row["seconds"] for route in DENSE if route != "pca_full" and (row := found[route][n]))
    ours = found["factors"][n]["seconds"]
    lines += ["", f"At N = {n}, raw factors: {found['pca_full'][n]['seconds'] / ours:.0f}× faster than a full PCA, "
              f"{best / ours:.1f}× than the best dense alternative."]  # fmt: skip
    if len(counts) > 1:
        growth = [
            f"{route} {found[route][b]['seconds'] / found[route][a]['seconds']:.1f}"
            for a, b in [(counts[-2], counts[-1])] for route in OURS
        ]  # fmt: skip
        lines += ["", f"From N = {counts[-2]} to {counts[-1]} time grew by: {', '.join(growth)} (linear would be "
                  f"{counts[-1] / counts[-2]:.1f})."]  # fmt: skip
    if lost:
        lines += [
            "",
            "What a sketch loses on the embedded study (72 LoRAs of rank 4, 70 modules): root mean square error of all",
            "cosines, and mAP of artists by cross-fitted components and by whole updates:",
            "",
            "| sketch | numbers | error | mAP, components | mAP, whole |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        for row in lost:
            scores = f"{row['mAP'][0]:.3f} | {row['mAP'][1]:.3f}"
            lines.append(f"| {row['kind']} | {row['numbers'] or ''} | {row['error']:.4f} | {scores} |")
    return "\n".join(lines)


def write_section(title: str, text: str) -> None:
    """Put a section of this title into RESULTS.md, in place of an older one."""
    path = Path(__file__).with_name("RESULTS.md")
    old = path.read_text() if path.is_file() else "# What was measured\n"
    before, _, rest = old.partition(f"\n## {title}\n")
    after = rest.partition("\n## ")
    path.write_text(f"{before.rstrip()}\n\n## {title}\n\n{text}\n" + (f"\n## {after[2]}" if after[1] else ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=128, help="the largest number of LoRAs")
    parser.add_argument(
        "--folder", type=Path, help="where the files are made (and kept); a temporary folder without it"
    )
    parser.add_argument("--study", type=Path, default=ROOT / "results/demo")
    parser.add_argument("--route", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.route:
        run_route(asked.route, asked.folder, asked.most)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        counts = [n for n in (16, 32, 64, 128) if n <= asked.most]
        generate(folder, max(counts))
        found: dict[str, dict[int, dict]] = {route: {} for route in {**OURS, **DENSE}}
        for count in counts:
            measure("read", folder, count)  # warms the page cache
            for route in found:
                if route in OURS or (count <= DENSE_LIMIT and count == max(n for n in counts if n <= DENSE_LIMIT)):
                    found[route][count] = measure(route, folder, count)
                    print(count, route, found[route][count], flush=True)
    lost = losses(asked.study) if (asked.study / "plan.parquet").is_file() else []
    write_section("Weights", section(found, lost))


if __name__ == "__main__":
    main()
