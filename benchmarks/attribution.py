"""Which LoRAs pictures speak for, by one gradient: how it is asked, against other ways to know, what it costs.

    python benchmarks/attribution.py one_step results/demo    LoRAs of one step against ordinary training
    python benchmarks/attribution.py thousand                 a set of pictures against 1,000 LoRAs of the mini base
    python benchmarks/attribution.py memory                   a UNet of SD1.5's size on this CPU, random weights

Studies must have run; other ways to ask are a stage of theirs (attribution.ways). LoRAs are centred by their mean, as
in attribution/scores.py, gradients are not; processor seconds of one thread.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "workflow"))
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pyarrow as pa
import torch
import yaml
from PIL import Image
from safetensors import safe_open

from lora_atlas import tables
from lora_atlas.attribution.asking import Asker, asker
from lora_atlas.attribution.pictures import pixels_of
from lora_atlas.attribution.scores import scored
from lora_atlas.diffusion import stacked
from lora_atlas.diffusion.attribution import Question, gradients, products, samples
from lora_atlas.diffusion.classifier import LoRA, losses_under
from lora_atlas.diffusion.generate import denoise, initial_noise, noise_seed
from lora_atlas.diffusion.one_step import direction, mean_gradient, step
from lora_atlas.features.extract import load
from lora_atlas.loras.factors import Update
from lora_atlas.loras.files import read_lora
from lora_atlas.metrics.ranking import average_precision
from lora_atlas.sections import Attribution, Base, Extractor, Training
from lora_atlas.settings import Setting
from lora_atlas.weights.stack import of_updates

CONFIG = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
TRAINING = Training(**CONFIG["training"])
BASE = Base(**CONFIG["base"]) | {"model": str(ROOT / CONFIG["base"]["model"])}
SAMPLES = 16


def ask(count: int = SAMPLES, caption: str | None = None, batch: int = 64) -> Asker:
    settings = Attribution(**CONFIG["attribution"]) | {"samples": count, "caption": caption, "batch": batch}
    return asker(BASE, settings, caption=TRAINING.caption, resolution=TRAINING.resolution, device="cpu")


class Study:
    """A study's plan, pictures and LoRAs, and the base ready to be asked."""

    def __init__(self, root: Path):
        self.root, self.plan = root, tables.read(root / "plan.parquet", "plan").to_pylist()
        self.gallery, self.queries = ([r for r in self.plan if r["split"] == s] for s in ("gallery", "query"))
        folder = root / "pictures" if (root / "pictures").is_dir() else root.parents[1] / "pictures"
        self.table = pa.concat_tables([tables.read(p, "pictures") for p in sorted(folder.glob("*.parquet"))])
        pictures = self.table.to_pylist()
        self.all = {r["picture"]: r["image"]["bytes"] for r in pictures if r["status"] == "kept"}
        self.base = ask()
        self.names = stacked.targeted(self.base.denoiser.module, TRAINING.targets, self.base.denoiser.targets)
        self.updates = {r["lora"]: self._update(r["lora"]) for r in self.plan}
        labels = np.array([r["artist"] for r in self.gallery])
        self.relevant = np.array([r["artist"] for r in self.queries])[:, None] == labels[None]
        self.stacks = {n: of_updates([self.updates[r["lora"]][n] for r in self.gallery]) for n in self.names}
        self.gram = sum(gram(self.stacks[n].updates(n)) for n in self.names)

    def _update(self, lora: str) -> dict[str, Update]:
        found = read_lora(self.root / "loras" / f"{lora}.safetensors").updates
        return {n: found[f"unet.{n}"] for n in self.names}

    def factors(self, lora: str) -> LoRA:
        return {n: (torch.from_numpy(u.A), torch.from_numpy(u.B)) for n, u in self.updates[lora].items()}

    def latents(self, pictures: list[str], base: Asker | None = None) -> torch.Tensor:
        base = base or self.base
        return base.latents([pixels_of(self.all[p], base.resolution) for p in pictures])

    @staticmethod
    def mean(scores: np.ndarray, relevant: np.ndarray) -> float:
        order = np.argsort(-scores, 1, kind="stable")
        return float(average_precision(np.take_along_axis(relevant, order, 1).astype(float)).mean())


def gram(updates: list[Update]) -> np.ndarray:
    dense = np.stack([(u.B @ u.A).ravel() for u in updates])
    return (dense @ dense.T).astype(float)


def one_step(study: Study) -> Iterator[str]:
    """Losses of pictures of the artist that nothing was trained on, and what the LoRA finds as a query."""
    path = study.root / "weights/modules/base.safetensors"
    with safe_open(path, "pt") as file:
        moments = {n: tuple(file.get_tensor(f"{kind}/unet.{n}") for kind in ("sigma", "G")) for n in study.names}
    queries = [r for r in study.queries if len(r["pictures"]) == max(len(q["pictures"]) for q in study.queries)]
    judged = replace(study.base.question, asked=samples(64, study.base.denoiser.latent_shape(64), 2))
    search = replace(study.base.question, asked=samples(SAMPLES, study.base.denoiser.latent_shape(64), 1))
    results: dict[str, list[tuple[float, float, float, float]]] = {}
    early, shown = trained(study, queries), []
    for row in queries:
        own = study.latents(row["pictures"])
        others = sorted({p for r in study.gallery if r["artist"] == row["artist"] for p in r["pictures"]})
        held, tested = study.latents(others[:6]), study.latents(others[6:16])
        tried: dict[str, LoRA] = {"the base": {}}
        tried |= {f"trained, {n} steps": found[row["lora"]] for n, found in early.items()}
        tried["trained, all steps"] = study.factors(row["lora"])
        seconds = {}
        for name, rank, which in (
            ("one step, rank 4", 4, None),
            ("one step, rank 32", 32, None),
            ("K-FAC, rank 4", 4, moments),
        ):
            start = time.process_time()
            tried[name] = step(
                study.base.question, own, study.names, rank=rank, moments=which, held_out=held, judged=search
            ).factors
            seconds[name] = time.process_time() - start
        losses = losses_under(judged, tested, list(tried.values())).mean(0)
        shown.append((row, tried))
        full = mean_gradient(study.base.question, own, study.names)[0]
        aimed = {"one step, rank 4": (4, None), "one step, rank 32": (32, None), "K-FAC, rank 4": (4, moments)}
        for (name, lora), loss in zip(tried.items(), losses, strict=True):
            # The direction finds what the scale cannot change.
            lora = direction(full, *aimed[name])[0] if name in aimed else lora
            ap = average(study, row, lora) if lora else float("nan")
            size = np.sqrt(sum(float((B.T @ B * (A @ A.T)).sum()) for A, B in tried[name].values())) if lora else 0.0
            results.setdefault(name, []).append((loss - losses[0], ap, seconds.get(name, float("nan")), size))
    yield f"{len(queries)} queries; loss of the base {losses[0]:.4f} (the last artist's)\n"
    yield "| LoRA | loss less the base's | better than it | as a query, mAP | norm | processor, s |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for name, rows in results.items():
        loss, ap, took, size = np.array(rows).T
        cells = f"{loss.mean():+.5f} | {np.mean(loss < 0):.2f} | {np.mean(ap):.3f} | {size.mean():.2f}"
        yield f"| {name} | {cells} | {np.mean(took):.0f} |"

    show(study, shown[:: max(1, len(shown) // 4)])


STEPS = (10, 40, 160)


def trained(study: Study, queries: list) -> dict[int, dict[str, LoRA]]:
    """Steps → LoRA → what ordinary training has made of it by then."""
    from lora_atlas.diffusion.train import Resources, train

    plan = tables.table("plan", queries)
    found: dict[int, dict[str, LoRA]] = {}
    for count in STEPS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            outputs = {row["lora"]: folder / f"{row['lora']}.safetensors" for row in queries}
            logs = {row["artist"]: folder / f"{row['artist']}.parquet" for row in queries}
            train(
                plan, study.table, BASE, TRAINING | {"steps": count}, seed=CONFIG["seed"], resources=Resources(),
                outputs=outputs, logs=logs, folder=folder / "state",
            )  # fmt: skip
            found[count] = {}
            for lora, path in outputs.items():
                updates = read_lora(path).updates
                found[count][lora] = {
                    n: (torch.from_numpy(updates[f"unet.{n}"].A), torch.from_numpy(updates[f"unet.{n}"].B))
                    for n in study.names
                }
    return found


def show(study: Study, rows: list) -> None:
    """A sheet of pictures, a row a query: one that it was trained on, then what the base, the LoRA of one step (as it
    is, and thirty times as far), and the trained LoRA generate from the same two prompts and noises."""
    from lora_atlas.diffusion.base import decode_latents

    pipeline, denoiser = study.base.pipeline, study.base.denoiser
    prompts = CONFIG["generation"]["prompts"][:2]
    text = denoiser.encode_text(pipeline, prompts, (64, 64))
    setting = Setting(8, 1.0, tuple(prompts), (0,))
    sheet = Image.new("RGB", (66 * 9, 66 * len(rows)), "white")
    for y, (row, tried) in enumerate(rows):
        step_ = tried["one step, rank 4"]
        loras = [{}, step_, {n: (A, 30 * B) for n, (A, B) in step_.items()}, tried["trained, all steps"]]
        cells = [pixels_of(study.all[row["pictures"][0]], 64)]
        for lora in loras:
            layers = stacked.stack(denoiser.module, study.names, 1, TRAINING.rank, 1.0)
            stacked.put(layers, 0, lora)
            noise = torch.stack([initial_noise(denoiser.latent_shape(64), 0, prompt, 3) for prompt in prompts])
            seeds = [noise_seed(0, prompt, 3) for prompt in prompts]
            x = denoise(pipeline, 1, noise, seeds, text=text, index=[0, 1], empty=0, setting=setting)
            stacked.unstack(denoiser.module, layers)
            cells += list(decode_latents(pipeline, x).numpy())
        for i, cell in enumerate(cells):
            sheet.paste(Image.fromarray(cell), (66 * i, 66 * y))
    sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.NEAREST).save(ROOT / "benchmarks/one_step.png")


def average(study: Study, row: dict, lora: LoRA) -> float:
    """Average precision of a LoRA as a query, centred by the gallery's mean as it is."""
    products_ = np.zeros(len(study.gallery))
    for n in study.names:
        A, B = (x.numpy() for x in lora[n])
        products_ += [float(((B.T @ u.B) * (A @ u.A.T)).sum()) for u in study.stacks[n].updates(n)]
    s = scored(products_[None], None, study.gram)
    return study.mean(s, study.relevant[[study.queries.index(row)]])


def thousand() -> Iterator[str]:
    """1,000 random LoRA files of the mini base: a set of ten pictures, files on disk, everything included."""
    from lora_atlas.diffusion.attribution import of_files
    from lora_atlas.loras.files import open_lora, write_lora

    base = ask(batch=32)
    names = stacked.targeted(base.denoiser.module, TRAINING.targets, base.denoiser.targets)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(1000):
            updates = {}
            for n in names:
                out, width = base.denoiser.module.get_submodule(n).weight.shape
                factors = (rng.normal(size=(4, width)).astype("f4"), rng.normal(size=(out, 4)).astype("f4"))
                updates[f"unet.{n}"] = Update(f"unet.{n}", *factors)
            write_lora(Path(folder, f"{i}.safetensors"), updates, {})
        latents = torch.randn(10, *base.denoiser.latent_shape(64))
        start = time.process_time()
        gradients(base.question, latents, names)
        alone = time.process_time() - start
        start = time.process_time()
        with of_files([open_lora(Path(folder, f"{i}.safetensors")) for i in range(1000)], "unet.") as loras:
            products(base.question, latents, names, loras, 1000)
        whole = time.process_time() - start
        # Generating and looking: 16 pictures of each at 8 steps, as config.yaml has it, and a feature of each.
        setting = Setting(8, 1.0, tuple(CONFIG["generation"]["prompts"]), (0, 1, 2, 3))
        text = base.denoiser.encode_text(base.pipeline, list(setting.prompts), (64, 64))
        layers = stacked.stack(base.denoiser.module, names, 3, 4, 1.0)
        noise = torch.randn(48, *base.denoiser.latent_shape(64))
        start = time.process_time()
        x = denoise(
            base.pipeline, 3, noise, [0] * 48, text=text, index=[i % 4 for i in range(48)], empty=0, setting=setting
        )
        from lora_atlas.diffusion.base import decode_latents

        clip = Extractor(**CONFIG["extractors"]["clip"])
        clip = load(clip | {"model": str(ROOT / clip.model)}, "cpu")
        pictures = decode_latents(base.pipeline, x).numpy()
        clip.encode([clip.prepare(Image.fromarray(picture)) for picture in pictures])
        looked = (time.process_time() - start) / 3 * 1000
        stacked.unstack(base.denoiser.module, layers)
    yield f"10 pictures, {SAMPLES} samples: the gradients alone {alone:.1f} s, with 1,000 LoRA files {whole:.1f} s"
    yield f"16 generated pictures each, 8 steps, and CLIP: {looked:.0f} s (of 3, stacked), {looked / whole:.0f} times"


def memory() -> Iterator[str]:
    """One picture of 512 pixels, one sample, 8 LoRAs in all attention and feed-forward layers of SD1.5's UNet."""
    from diffusers import DDIMScheduler, UNet2DConditionModel

    from lora_atlas.diffusion.denoisers import Conditioning
    from lora_atlas.diffusion.denoisers.unet import UNet
    from lora_atlas.diffusion.objectives import objective_of

    class Pipeline:
        vae_scale_factor = 8

    Pipeline.unet = UNet2DConditionModel(
        cross_attention_dim=768, attention_head_dim=8
    )  # the class's defaults are SD1's
    Pipeline.unet.requires_grad_(False)
    denoiser = UNet(Pipeline())
    names = stacked.targeted(denoiser.module, ["attention", "feed_forward"], denoiser.targets)
    rng = np.random.default_rng(0)
    stacks = {}
    for n in names:
        out, width = denoiser.module.get_submodule(n).weight.shape
        made = [
            Update(n, rng.normal(size=(16, width)).astype("f4"), rng.normal(size=(out, 16)).astype("f4"))
            for _ in range(8)
        ]
        stacks[n] = of_updates(made)
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    text = Conditioning({"embeds": torch.randn(1, 77, 768)})
    question = Question(denoiser, objective_of(scheduler, "cpu"), text, samples(1, (4, 64, 64), 0), 1)
    numbers = sum(denoiser.module.get_submodule(n).weight.numel() for n in names)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    yield f"{numbers / 1e6:.0f} million weights of {len(names)} layers; {before:.1f} GiB with the base and 8 LoRAs"
    for what, room in (("dropped layer by layer", 1), ("held", 2**33)):
        start = time.process_time()
        products(question, torch.randn(1, 4, 64, 64), names, lambda n: iter([(range(8), stacks[n])]), 8, memory=room)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        yield f"gradients {what}: peak {peak:.1f} GiB, {time.process_time() - start:.0f} s of processor a sample"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["one_step", "thousand", "memory"])
    parser.add_argument("study", type=Path, nargs="?", help="results of a study that has run")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what in ("thousand", "memory"):
        lines = {"thousand": thousand, "memory": memory}[args.what]()
    else:
        lines = one_step(Study(args.study))
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()
