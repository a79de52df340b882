"""How long the evaluation takes: the project's own tables beside the loop of scikit-learn that one would write.

    python benchmarks/metrics.py                     1,000 LoRAs × 12 descriptors × 1,000 resamplings, ours
    python benchmarks/metrics.py --naive 3           and what the same scores cost call by call, 3 resamplings measured

Embeddings are synthetic: 100 artists of 10 genres, 10 LoRAs each, 16 dimensions, artists a little apart. Ours writes
every row of the tables clustering, retrieval, queries, differences, controls, drift and structure. The naive loop
calls scikit-learn for each resampling of artists (mAP and R@1 of queries, k-means once, ARI, AMI, silhouette, 1-NN),
for one descriptor and a few resamplings; its whole is extrapolated, which it is generous to: no chance levels, no
differences, no structure, one calibration, one distance.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "workflow"))

import numpy as np

from lora_atlas import tables
from lora_atlas.tables import KNOWN, TOGETHER, UNSEEN

CALIBRATIONS = ("none", "rescale", "lzw", "crossfit", "split")


def synthetic(descriptor: int, artists: int, each: int, dimensions: int) -> tables.pa.Table:
    """An embeddings table as a study writes it: one space of all, five calibrations, one artist-disjoint space."""
    rng = np.random.default_rng(descriptor)
    centres = rng.normal(size=(artists, dimensions)) * (0.4 + 0.1 * descriptor)
    rows = []
    for scenario, calibration in [(TOGETHER, "none"), *((KNOWN, c) for c in CALIBRATIONS), (UNSEEN, "none")]:
        noise = rng.normal(size=(artists, each, dimensions))
        for artist in range(artists):
            for number in range(each):
                rows.append(
                    {
                        "scenario": scenario,
                        "calibration": calibration,
                        "fold": artist % 2 if scenario == UNSEEN else 0,
                        "lora": f"artist{artist:03d}/{number:02d}",
                        "artist": f"artist{artist:03d}",
                        "genre": f"genre{artist % 10}",
                        "split": "gallery" if number < 0.7 * each else "query",
                        "vector": centres[artist] + noise[artist, number],
                    }
                )
    numbers = [0.1] * dimensions
    told = {"explained": numbers, "held_out_ratio": numbers, "held_out_ratio_predicted": numbers}
    return tables.table("embeddings", rows).replace_schema_metadata({k: json.dumps(v) for k, v in told.items()})


def ours(embeddings: dict[str, tables.pa.Table], kinds: dict[str, str], bootstrap: int) -> dict[str, float]:
    """Seconds of each part."""
    from lora_atlas.metrics import clustering, drift, margins, retrieval, structure

    options = {"bootstrap": bootstrap, "level": 0.95, "seed": 0}
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable):
        start = time.perf_counter()
        found = work()
        seconds[name] = time.perf_counter() - start
        return found

    asked = timed("retrieval: rankings", lambda: {d: list(retrieval.ask(e, d, seed=0)) for d, e in embeddings.items()})
    timed("retrieval: intervals", lambda: [retrieval.rows(asked[d], d, **options) for d in embeddings])
    queries = tables.table("queries", [row for d in embeddings for row in retrieval.queries(asked[d], d, "crossfit")])
    timed("differences", lambda: margins.differences(queries, kinds, **options))
    timed("controls", lambda: margins.permuted(embeddings, "crossfit", permutations=200, level=0.95, seed=0))
    timed("drift", lambda: [drift.drift(e, d, **options) for d, e in embeddings.items()])
    timed(
        "clustering",
        lambda: clustering.clusterings(
            embeddings, kinds, calibration="crossfit", restarts=20, permutations=200, **options
        ),
    )
    timed("structure", lambda: structure.structure(embeddings, permutations=1000, level=0.95, seed=0))
    return seconds


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
    args = parser.parse_args()
    names = [f"descriptor{i:02d}" for i in range(args.descriptors)]
    embeddings = {name: synthetic(i, args.loras // 10, 10, 16) for i, name in enumerate(names)}
    kinds = {name: "control" if i % 4 == 3 else "weights" for i, name in enumerate(names)}
    seconds = ours(embeddings, kinds, args.bootstrap)
    total = sum(seconds.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print("| part | seconds |\n| --- | ---: |")
    for name, value in seconds.items():
        print(f"| {name} | {value:.1f} |")
    print(f"| **all, in one process** | **{total:.1f}** |\n\nPeak memory {peak:.2f} GiB.")
    if args.naive:
        once, each = naive(embeddings[names[0]], args.naive)
        whole = args.descriptors * (once + args.bootstrap * each)
        print(f"\nThe naive loop: {each:.2f} s a resampling and descriptor, {whole / 60:.0f} minutes in all: "
              f"{whole / total:.0f} times as long, for a fraction of the rows.")  # fmt: skip


if __name__ == "__main__":
    main()
