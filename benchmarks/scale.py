"""Neighbours among many LoRAs: sketches as arrays, exact and by indexes that approximate; build, query, recall, bytes.

    python -m venv scale && scale/bin/pip install numpy pyarrow usearch==2.26.6 faiss-cpu==1.15.1
    scale/bin/python benchmarks/scale.py --folder /tmp/scale --sizes 1000 10000 100000

Synthetic sketches: artists are directions drawn at random, a LoRA is its artist's direction and noise as large, at norm
one, in 256 numbers (a sketch of any size is brought there by a random projection, whose error is on no side of this
comparison). Each index is asked by the same 200 queries, of artists that are there; recall@10 is the share of the ten
nearest by exact cosines that it names. One thread, and processor seconds: other jobs may run.

The sketches lie in Parquet shards of 10,000 rows, and are read back from them before each measurement.
"""

import argparse
import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

D, SHARD, QUERIES, NEAREST = 256, 10_000, 200, 10
PER_ARTIST = 20  # LoRAs of an artist, as in the study of FLUX.1


def sketches(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Gallery (count, D) and queries (QUERIES, D) float32, rows at norm one."""
    rng = np.random.default_rng(seed)
    artists = rng.normal(size=(max(1, count // PER_ARTIST), D)).astype(np.float32)
    of = np.concatenate([np.arange(count) % len(artists), rng.integers(len(artists), size=QUERIES)])
    found = artists[of] + rng.normal(size=(len(of), D)).astype(np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found[:count], found[count:]


def write_shards(X: np.ndarray, folder: Path) -> None:
    """Rows as fixed-size lists of float32, SHARD a file."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(X), SHARD)):
        part = X[start : start + SHARD]
        column = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), D)
        table = pa.table({"lora": pa.array(np.arange(start, start + len(part))), "sketch": column})
        pq.write_table(table, folder / f"{number:05d}.parquet", compression="none", write_page_checksum=True)


def read_shards(folder: Path) -> np.ndarray:
    parts = []
    for path in sorted(folder.glob("*.parquet")):
        column = pq.read_table(path, columns=["sketch"], page_checksum_verification=True)["sketch"].combine_chunks()
        parts.append(column.flatten().to_numpy().reshape(-1, D))
    return np.concatenate(parts)


def exact(X: np.ndarray) -> tuple[Callable[[np.ndarray], np.ndarray], int]:
    """Inner products with all; memory is that of the array itself."""
    return lambda asked: np.argsort(-(asked @ X.T), axis=1)[:, :NEAREST], X.nbytes


def usearch(X: np.ndarray) -> tuple[Callable[[np.ndarray], np.ndarray], int]:
    from usearch.index import Index

    index = Index(ndim=D, metric="ip", dtype="f32", connectivity=16, expansion_add=128, expansion_search=128)
    index.add(np.arange(len(X)), X, threads=1)
    return lambda asked: index.search(asked, NEAREST, threads=1).keys, len(bytes(index.save()))


def faiss_hnsw(X: np.ndarray) -> tuple[Callable[[np.ndarray], np.ndarray], int]:
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.IndexHNSWFlat(D, 16, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = 128, 128
    index.add(X)
    return lambda asked: index.search(asked, NEAREST)[1], len(faiss.serialize_index(index))


def faiss_ivf(X: np.ndarray) -> tuple[Callable[[np.ndarray], np.ndarray], int]:
    import faiss

    faiss.omp_set_num_threads(1)
    lists = int(len(X) ** 0.5)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(D), D, lists, faiss.METRIC_INNER_PRODUCT)
    index.train(X)
    index.add(X)
    index.nprobe = max(8, lists // 8)
    return lambda asked: index.search(asked, NEAREST)[1], len(faiss.serialize_index(index))


INDEXES = {"exact": exact, "usearch, HNSW": usearch, "faiss, HNSW": faiss_hnsw, "faiss, inverted lists": faiss_ivf}


def measured(size: int, folder: Path) -> Iterator[dict[str, Any]]:
    gallery, asked = sketches(size, 0)
    begin = time.process_time()
    write_shards(gallery, folder / str(size))
    written = time.process_time() - begin
    begin = time.process_time()
    X = read_shards(folder / str(size))
    read = time.process_time() - begin
    assert np.array_equal(X, gallery)
    on_disk = sum(path.stat().st_size for path in (folder / str(size)).glob("*.parquet"))
    yield {"loras": size, "way": "shards", "write": written, "read": read, "bytes": on_disk}
    truth = exact(X)[0](asked)
    for way, make in INDEXES.items():
        clock, begin = time.perf_counter(), time.process_time()
        search, size_of = make(X)
        build = time.process_time() - begin
        told = {"loras": size, "way": way, "build": build, "build_clock": time.perf_counter() - clock, "bytes": size_of}
        search(asked[:1])
        begin = time.process_time()
        for one in range(len(asked)):  # one LoRA at a time, as a person asks
            found = search(asked[one : one + 1])
        query = (time.process_time() - begin) / len(asked)
        found = search(asked)
        hits = [len(set(a) & set(b)) for a, b in zip(found.tolist(), truth.tolist(), strict=True)]
        yield told | {"query": query, "recall": float(np.mean(hits)) / NEAREST}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    print({name: importlib.metadata.version(name) for name in ("numpy", "pyarrow", "usearch", "faiss-cpu")}, flush=True)
    for size in given.sizes:
        for row in measured(size, given.folder):
            with (given.folder / "measured.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
