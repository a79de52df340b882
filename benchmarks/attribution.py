"""Pictures of query LoRAs → gallery LoRAs, by one gradient of the frozen base: nothing is trained or generated.

    python benchmarks/attribution.py results/demo                  mAP of a study that has run, 16 samples a picture
    python benchmarks/attribution.py results/demo --samples 4 16 64

Scores are −⟨ΔW, g⟩ / ‖ΔW‖, g the mean gradient of a query LoRA's training pictures: plain; centred by the gallery's
mean LoRA and by the mean gradient of other artists' pictures; and with the base's mean squared output gradient as
weights of modules, where the study has measured it. No artist's own pictures take part in what centres its scores.
"""

import argparse
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "workflow"))
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pyarrow as pa
import torch
import yaml

from lora_atlas import tables
from lora_atlas.diffusion import base as bases
from lora_atlas.diffusion import examples, stacked
from lora_atlas.diffusion.attribution import Products, products, samples
from lora_atlas.diffusion.denoisers import denoiser_of
from lora_atlas.diffusion.objectives import objective_of
from lora_atlas.loras.factors import Update
from lora_atlas.loras.files import read_lora
from lora_atlas.metrics.ranking import average_precision, chance
from lora_atlas.sections import Base, Training
from lora_atlas.weights.metric import read_metric
from lora_atlas.weights.stack import Stack, of_updates


def stacks(root: Path, loras: list[str], modules: list[str]) -> dict[str, Stack]:
    """Module → updates of all LoRAs of a study."""
    read = [read_lora(root / "loras" / f"{lora}.safetensors").updates for lora in loras]
    found = {}
    for module in modules:
        updates = [each[f"unet.{module}"] for each in read]
        assert all(isinstance(update, Update) for update in updates)
        found[module] = of_updates(updates)
    return found


def inner(stack: Stack, module: str) -> np.ndarray:
    """⟨ΔWᵢ, ΔWⱼ⟩ (N, N) of one module."""
    dense = np.stack([(update.B @ update.A).ravel() for update in stack.updates(module)])
    return (dense @ dense.T).astype(float)


def mean_average_precision(scores: np.ndarray, relevant: np.ndarray) -> float:
    """Of scores (queries, gallery), the higher the better."""
    order = np.argsort(-scores, 1, kind="stable")
    return float(average_precision(np.take_along_axis(relevant, order, 1)).mean())


def ranked(
    found: Products, grams: np.ndarray, weights: np.ndarray, sets: list[list[int]], artists: dict, centred: bool
):
    """Scores (queries, gallery): `grams` (modules, gallery, gallery), `sets` pictures of each query."""
    values = np.tensordot(weights, found.values, 1)  # (pictures, gallery)
    K = np.tensordot(weights, grams, 1)
    scores = np.stack([values[own].mean(0) for own in sets])
    if not centred:
        return scores / np.sqrt(np.diag(K))
    scores = np.stack(
        [
            row - np.mean([each for each, other in zip(scores, artists["query"], strict=True) if other != artist], 0)
            for row, artist in zip(scores, artists["query"], strict=True)
        ]
    )
    scores -= scores.mean(1, keepdims=True)
    return scores / np.sqrt(np.diag(K) - 2 * K.mean(1) + K.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--samples", type=int, nargs="+", default=[16], help="noisy latents of each picture")
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    training, base = Training(**config["training"]), Base(**config["base"])
    base |= {"model": str(ROOT / base.model)}
    plan = tables.read(args.study / "plan.parquet", "plan").to_pylist()
    pictures = pa.concat_tables(
        tables.read(path, "pictures") for path in sorted((args.study / "pictures").glob("*.parquet"))
    )
    gallery, queries = ([row for row in plan if row["split"] == side] for side in ("gallery", "query"))
    pipeline = bases.load(base, device="cpu")
    denoiser = denoiser_of(pipeline)
    names = stacked.targeted(denoiser.module, training.targets, denoiser.targets)
    updates = stacks(args.study, [row["lora"] for row in gallery], names)
    grams = np.stack([inner(updates[name], name) for name in names])
    wanted = sorted({picture for row in queries for picture in row["pictures"]})
    latents, places, _ = examples.encode(pipeline, denoiser, pictures, wanted, training)
    ((shape, own),) = latents.items()
    sets = [[places[picture][1] for picture in row["pictures"]] for row in queries]
    artists = {side: [row["artist"] for row in rows] for side, rows in (("gallery", gallery), ("query", queries))}
    relevant = np.array(artists["query"])[:, None] == np.array(artists["gallery"])[None]
    text = denoiser.encode_text(pipeline, [training.caption], (training.resolution,) * 2)
    sensitivity = args.study / "weights/modules/base.safetensors"
    weightings = {"plain": np.ones(len(names))}
    if sensitivity.is_file():
        measured = read_metric(sensitivity).weights
        weightings["gradient"] = np.array([measured[f"unet.{name}"] for name in names])
    by_chance = np.mean([chance("mAP", int(hits), len(gallery)) for hits in relevant.sum(1)])
    print(f"{len(queries)} queries of {len(wanted)} pictures, {len(gallery)} LoRAs; chance {by_chance:.2f}\n")
    print("| samples a picture | modules | plain | centred | processor, s |\n| ---: | --- | ---: | ---: | ---: |")
    for count in args.samples:
        start = time.process_time()
        asked = samples(count, (denoiser.channels, *shape), seed=0)
        found = products(
            denoiser, objective_of(pipeline.scheduler, "cpu"), own, text, updates.__getitem__, names,
            asked=asked, batch=args.batch,
        )  # fmt: skip
        seconds = time.process_time() - start
        for name, weights in weightings.items():
            scores = (ranked(found, grams, weights, sets, artists, centred) for centred in (False, True))
            plain, centred = (mean_average_precision(each, relevant) for each in scores)
            print(f"| {count} | {name} | {plain:.3f} | {centred:.3f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
