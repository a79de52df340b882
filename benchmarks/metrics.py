"""How long the evaluation takes: the project's own tables beside the loop of scikit-learn that one would write.

    python benchmarks/metrics.py                     1,000 LoRAs × 12 descriptors × 1,000 resamplings, ours
    python benchmarks/metrics.py --naive 3           and what the same scores cost call by call, 3 resamplings measured

Embeddings are synthetic: 100 artists of 10 genres, 10 LoRAs each, 16 dimensions, artists a little apart; and without a
basis as many dimensions as LoRAs, as inner products of so many have. Ours makes every row of the tables clustering,
retrieval, queries, differences, controls, drift, structure, grid and worth, in the jobs that the workflow has, two at a
time. The naive loop calls scikit-learn for each resampling of artists (mAP of
queries, ARI, AMI, silhouette, 1-NN), for one descriptor and a few resamplings; its whole is extrapolated, which it is
generous to: no chance levels, no differences, no structure, one calibration, one distance.
"""

import argparse
import json
import os
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "workflow"))
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # jobs side by side, as in the workflow

import numpy as np

from lora_atlas import tables
from lora_atlas.sections import Embedding
from lora_atlas.tables import KNOWN, TOGETHER, UNSEEN, WHOLE, WHOLE_UNSEEN
from lora_atlas.views import View

Tables, Kinds = dict[str, tables.pa.Table], dict[str, str]
VIEW = View("whole", "crossfit", "cosine")
CALIBRATIONS = ("none", "rescale", "lzw", "crossfit", "split")


def synthetic(descriptor: int, artists: int, each: int, dimensions: int) -> tables.pa.Table:
    """An embeddings table as a study writes it: one space of all, five calibrations, one artist-disjoint space, and two
    without a basis."""
    rng = np.random.default_rng(descriptor)
    centres = rng.normal(size=(artists, dimensions)) * (0.4 + 0.1 * descriptor)
    rows = []
    wide = rng.normal(size=(artists, each, artists * each - dimensions)) / 4
    spaces = [(TOGETHER, "none"), *((KNOWN, c) for c in CALIBRATIONS), (UNSEEN, "none"), (WHOLE, "none")]
    for scenario, calibration in [*spaces, (WHOLE_UNSEEN, "none")]:
        noise = rng.normal(size=(artists, each, dimensions))
        rest = wide if scenario in (WHOLE, WHOLE_UNSEEN) else wide[..., :0]
        for artist in range(artists):
            for number in range(each):
                rows.append(
                    {
                        "scenario": scenario,
                        "calibration": calibration,
                        "fold": artist % 2 if scenario in (UNSEEN, WHOLE_UNSEEN) else 0,
                        "lora": f"artist{artist:03d}/{number:02d}",
                        "artist": f"artist{artist:03d}",
                        "genre": f"genre{artist % 10}",
                        "split": "gallery" if number < 0.7 * each else "query",
                        "vector": np.concatenate([centres[artist] + noise[artist, number], rest[artist, number]]),
                    }
                )
    numbers = [0.1] * dimensions
    told = {"explained": numbers, "held_out_ratio": numbers, "held_out_ratio_predicted": numbers}
    return tables.table("embeddings", rows).replace_schema_metadata({k: json.dumps(v) for k, v in told.items()})


def retrieval_job(embeddings: Tables, kinds: Kinds, bootstrap: int) -> None:
    from lora_atlas.metrics import drift, margins, retrieval

    asked = {name: list(retrieval.ask(table, name, seed=0)) for name, table in embeddings.items()}
    rows = [row for name in embeddings for row in retrieval.rows(asked[name], name, confidence=0.95)]
    tables.table("retrieval", rows)
    queries = [row for name in embeddings for row in retrieval.queries(asked[name], name)]
    margins.differences(tables.table("queries", queries), kinds, VIEW, confidence=0.95)
    margins.permuted(embeddings, VIEW, permutations=200, confidence=0.95, seed=0)
    for name, table in embeddings.items():
        drift.drift(table, name, confidence=0.95)


def clustering_job(embeddings: Tables, kinds: Kinds, bootstrap: int) -> None:
    from lora_atlas.metrics.clustering import clusterings

    clusterings(
        embeddings,
        kinds,
        calibration="crossfit",
        restarts=20,
        permutations=200,
        confidence=0.95,
        seed=0,
    )


def structure_job(embeddings: Tables, kinds: Kinds, bootstrap: int) -> None:
    from lora_atlas.metrics.structure import structure

    sizes = dict.fromkeys(next(iter(embeddings.values()))["lora"].to_pylist(), 10)
    structure(embeddings, sizes, scenario=VIEW.together, permutations=1000, confidence=0.95, seed=0)


def grid_job(embeddings: Tables, kinds: Kinds, bootstrap: int) -> None:
    from lora_atlas.metrics.grid import grid

    plan, grams = planned(embeddings)
    embedding = Embedding(16, list(CALIBRATIONS), "crossfit", 5)
    grid(grams, plan, embedding, view=VIEW, confidence=0.95, seed=0)


def worth_job(embeddings: Tables, kinds: Kinds, bootstrap: int) -> None:
    """Four descriptors of sixteen generated pictures a LoRA, 128 numbers each."""
    from lora_atlas.metrics import worth

    plan, _ = planned(embeddings)
    rng = np.random.default_rng(0)
    loras = plan["lora"].to_pylist()
    features = {}
    for number in range(4):
        vectors = rng.normal(size=(len(loras), 16, 128)).astype(np.float32)
        columns = {
            "picture": [f"{lora}-{j}" for lora in loras for j in range(16)],
            "artist": [lora.split("/")[0] for lora in loras for _ in range(16)],
            "lora": [lora for lora in loras for _ in range(16)],
            "vector": list(vectors.reshape(-1, 128)),
        }
        schema = tables.SCHEMAS["features"]
        features[f"clip_s{number}_g1"] = tables.pa.table(columns, schema=schema)
    embedding = Embedding(16, list(CALIBRATIONS), "crossfit", 5)
    rows = tables.table("worth_queries", worth.worth_queries(features, plan, embedding, view=VIEW, draws=16, seed=0))
    worth.curves(rows, {}, confidence=0.95)


def planned(embeddings: Tables) -> tuple[tables.pa.Table, dict[str, np.ndarray]]:
    """A plan of the same LoRAs, and each descriptor's inner products: of its vectors and of 300 dimensions of noise."""
    found, grams = None, {}
    for number, (name, table) in enumerate(embeddings.items()):
        frame = table.to_pandas()
        frame = frame[frame["scenario"] == TOGETHER]
        X = np.stack(frame["vector"])
        X = np.hstack([X, np.random.default_rng(number).normal(size=(len(X), 300))])
        grams[name] = X @ X.T
        found = frame
    rows = found[["lora", "artist", "genre", "split"]].to_dict("records")
    return tables.table("plan", [row | {"seed": 0, "pictures": ["p"], "overlap": 0.0} for row in rows]), grams


JOBS = {
    job.__name__.removesuffix("_job"): job
    for job in (grid_job, clustering_job, structure_job, retrieval_job, worth_job)
}


def run(name: str, loras: int, descriptors: int, bootstrap: int) -> tuple[str, float, float]:
    """A job's name, seconds, and peak memory (GiB), with its inputs made beforehand."""
    names = [f"descriptor{i:02d}" for i in range(descriptors)]
    embeddings = {name: synthetic(i, loras // 10, 10, 16) for i, name in enumerate(names)}
    kinds = {name: "control" if i % 4 == 3 else "weights" for i, name in enumerate(names)}
    start = time.perf_counter()
    JOBS[name](embeddings, kinds, bootstrap)
    return name, time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def naive(table: tables.pa.Table, resamplings: int) -> tuple[float, float]:
    """Seconds of what is done once for a descriptor, and of one resampling, call by call."""
    from sklearn import metrics
    from sklearn.cluster import KMeans
    from sklearn.neighbors import KNeighborsClassifier

    frame = table.to_pandas()
    frame = frame[frame["calibration"] == "crossfit"]
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    X = np.stack(frame["vector"])
    clusters = KMeans(frame["artist"].nunique(), n_init=20, random_state=0).fit_predict(X)
    once = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(resamplings):
        drawn = rng.choice(frame["artist"].unique(), frame["artist"].nunique())
        rows = np.concatenate([np.flatnonzero(frame["artist"] == artist) for artist in drawn])
        part, Y, labels = frame.iloc[rows], X[rows], frame["artist"].iloc[rows].to_numpy()
        metrics.adjusted_rand_score(labels, clusters[rows])
        metrics.adjusted_mutual_info_score(labels, clusters[rows])
        metrics.silhouette_score(Y, labels)
        KNeighborsClassifier(2).fit(Y, labels).score(Y, labels)
        asked, known = (part["split"] == side for side in ("query", "gallery"))
        D = metrics.pairwise_distances(Y[asked], Y[known])
        for d, artist in zip(D, labels[asked], strict=True):
            metrics.average_precision_score(labels[known] == artist, -d)
    return once, (time.perf_counter() - start) / resamplings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loras", type=int, default=1000)
    parser.add_argument("--descriptors", type=int, default=12)
    parser.add_argument("--bootstrap", type=int, default=1000)
    parser.add_argument(
        "--naive", type=int, default=0, metavar="N", help="also measure N resamplings of the naive loop"
    )
    parser.add_argument("--jobs", type=int, default=2, help="at a time, each in one thread")
    args = parser.parse_args()
    start = time.perf_counter()
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        futures = [pool.submit(run, name, args.loras, args.descriptors, args.bootstrap) for name in JOBS]
        found = [future.result() for future in futures]
    wall = time.perf_counter() - start
    print("| job | seconds | peak memory, GiB |\n| --- | ---: | ---: |")
    for name, seconds, memory in found:
        print(f"| {name} | {seconds:.0f} | {memory:.2f} |")
    largest = sum(sorted((memory for *_, memory in found), reverse=True)[: args.jobs])
    print(
        f"| **all, {args.jobs} jobs at a time, starts and inputs included** | **{wall:.0f}** | at most {largest:.2f} |"
    )
    if args.naive:
        once, each = naive(synthetic(0, args.loras // 10, 10, 16), args.naive)
        whole = args.descriptors * (once + args.bootstrap * each)
        ours = {name: seconds for name, seconds, _ in found}
        same = ours["retrieval"] + ours["clustering"]
        print(
            f"\nThe naive loop: {each:.2f} s a resampling and descriptor, {whole / 60:.0f} minutes in all: "
            f"{whole / same:.0f} times as long as retrieval and clustering, for a fraction of their rows."
        )


if __name__ == "__main__":
    main()
