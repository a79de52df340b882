"""How many LoRAs an hour: this project's trainer beside what a user would run instead, in one run, in turns.

    python benchmarks/training.py --json benchmarks/training.json --chart benchmarks/training.png
    python benchmarks/training.py --base mini_flow --turns 3 --packs 24 --threads 1
    python benchmarks/training.py --device cuda --base sd15 --resolution 512 --packs 1 2 4 8 16 --rank 16

(a) a fair sequential loop of plain diffusers and PEFT: cached latents and text, one model in memory for all LoRAs;
(b) one process per LoRA, pictures and caption encoded again at each step, as the public example scripts do;
(c) the pack loop of lora_atlas, K LoRAs in one model.

All three see the same pictures, noise and timesteps, take the same steps with the same optimizer, clipping and
targets, and report the mean loss of their last steps. On a GPU the base is built with random weights (sd15, sdxl),
since times do not depend on them. Times of the parts are measured in turns (a, b, c, a, b, c, …), so that whatever
else the machine does strikes all three, and are put together for a LoRA of `--lora-steps` steps.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "workflow"))

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from lora_atlas.diffusion import base as bases
from lora_atlas.diffusion import pack, stacked
from lora_atlas.diffusion.denoisers import Conditioning, Denoiser, denoiser_of
from lora_atlas.diffusion.denoisers.unet import UNet
from lora_atlas.diffusion.objectives import Objective, objective_of
from lora_atlas.diffusion.schedule import learning_rate
from lora_atlas.diffusion.streams import draw, initial_seeds
from lora_atlas.sections import Base, Training

MINI = {"mini": "mini", "mini_flow": "mini-flow"}  # bases of the repository: their folders
BATCH = 4
PICTURES = 10


@dataclass(frozen=True)
class Bench:
    """A base and pictures, encoded and not."""

    denoiser: Denoiser
    vae: Any
    encoders: list[torch.nn.Module]
    tokens: torch.Tensor
    pixels: torch.Tensor
    latents: torch.Tensor
    text: Conditioning
    objective: Objective

    @property
    def shape(self) -> tuple[int, int]:
        return tuple(self.latents.shape[2:])


def architecture(name: str, reduced: bool) -> dict[str, Any]:
    """The UNet of SD1.5 or SDXL, or one of the same make with a tenth of its channels."""
    shrink = 10 if reduced else 1
    if name == "sd15":
        return {
            "block_out_channels": tuple(c // shrink for c in (320, 640, 1280, 1280)),
            "cross_attention_dim": 768 // (8 if reduced else 1),
            "attention_head_dim": 8,
            "norm_num_groups": 32 // (8 if reduced else 1),
        }
    return {
        "block_out_channels": tuple(c // shrink for c in (320, 640, 1280)),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 2 if reduced else 10),
        "attention_head_dim": (5, 10, 20) if not reduced else (2, 4, 8),
        "cross_attention_dim": 2048 // (8 if reduced else 1),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "norm_num_groups": 32 // (8 if reduced else 1),
    }


def prepare(args: argparse.Namespace) -> Bench:
    """A mini base from its folder, or a random one."""
    device, side = args.device, args.resolution
    torch.manual_seed(0)
    pixels = torch.rand(PICTURES, 3, side, side, device=device) * 2 - 1
    if args.base in MINI:
        pipeline = bases.load(Base(str(ROOT / f"workflow/resources/{MINI[args.base]}/base")), device=device)
        denoiser = denoiser_of(pipeline)
        text = denoiser.encode_text(pipeline, ["a painting"], (side, side))
        tokens = pipeline.tokenizer("a painting", padding="max_length", return_tensors="pt").input_ids.to(device)
        latents = bases.encode_pictures(pipeline, pixels)
        objective = objective_of(pipeline.scheduler, device, density=denoiser.density)
        encoders = [getattr(pipeline, name, None) for name in ("text_encoder", "text_encoder_2")]
        encoders = [encoder for encoder in encoders if encoder is not None]
        return Bench(denoiser, pipeline.vae, encoders, tokens, pixels, latents, text, objective)
    dtype = bases.DTYPES[device]
    shape = architecture(args.base, args.reduced)
    unet = UNet2DConditionModel(sample_size=side // 8, **shape).to(device, dtype).requires_grad_(False)
    width = (32, 64, 64, 64) if args.reduced else (128, 256, 512, 512)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=width,
        layers_per_block=2,
    )
    widths = [(768, 12)] if args.base == "sd15" else [(768, 12), (1280, 32)]
    encoders = [
        CLIPTextModel(
            CLIPTextConfig(
                hidden_size=w // (8 if args.reduced else 1),
                intermediate_size=w // (2 if args.reduced else 1),
                num_hidden_layers=2 if args.reduced else n,
                num_attention_heads=12 if w == 768 else 20,
            )
        )
        .to(device, dtype)
        .requires_grad_(False)
        for w, n in widths
    ]
    tokens = torch.randint(0, 1000, (1, 77), device=device)
    text = {"embeds": torch.randn(1, 77, shape["cross_attention_dim"], device=device, dtype=dtype)}
    if args.base == "sdxl":
        text["pooled"] = torch.randn(1, 1280, device=device, dtype=dtype)
        text["time_ids"] = torch.tensor([[side, side, 0, 0, side, side]], device=device, dtype=dtype)
    latents = torch.randn(PICTURES, 4, side // 8, side // 8, device=device)
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    objective = objective_of(scheduler, device)
    vae = vae.to(device, dtype).requires_grad_(False)
    denoiser = UNet(SimpleNamespace(unet=unet, vae_scale_factor=8))
    return Bench(denoiser, vae, encoders, tokens, pixels, latents, Conditioning(text), objective)


def recipe(args: argparse.Namespace, steps: int) -> Training:
    return Training(
        resolution=args.resolution,
        aspect_ratio_buckets=False,
        caption="a painting",
        rank=args.rank,
        alpha=args.rank,
        targets=["attention", "feed_forward"],
        init="own",
        noise="own",
        steps=steps,
        batch=BATCH,
        learning_rate=1e-3 if args.base in MINI else 1e-4,
        warmup=10,
        lr_schedule="constant",
        weight_decay=0.01,
        max_grad_norm=1.0,
        loss="epsilon",
        min_snr_gamma=5.0,
    )


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def cast(args: argparse.Namespace) -> torch.autocast:
    """Arithmetic in bfloat16: always on a GPU, on a CPU where it is asked for."""
    return torch.autocast(args.device, torch.bfloat16, enabled=args.device == "cuda" or args.precision == "bfloat16")


def sequential(bench: Bench, training: Training, lora: int, cached: bool, args: argparse.Namespace):
    """Arms (a) and (b): one LoRA by PEFT; seconds and loss of each step, and the processor's seconds in all."""
    unet, b, device = bench.denoiser.module, training.batch, args.device
    torch.manual_seed(lora)
    modules = bench.denoiser.layers(training.targets)
    unet.add_adapter(LoraConfig(r=training.rank, lora_alpha=training.rank, target_modules=modules))
    params = [p for p in unet.parameters() if p.requires_grad]
    for p in params:
        p.data = p.data.float()
    optimizer = torch.optim.AdamW(params, lr=training.learning_rate, weight_decay=training.weight_decay)
    pictures = {bench.shape: list(range(PICTURES))}
    seconds, losses, work = [], [], time.process_time()
    for step in range(training.steps):
        wait(device)
        start = time.perf_counter()
        d = draw(lora, lora, step, pictures, b, bench.latents.shape[1])
        index = torch.tensor(d.pictures)
        if not cached:
            with torch.no_grad():
                bench.vae.encode(bench.pixels[index.to(device)].to(bench.vae.dtype))
                for encoder in bench.encoders:
                    encoder(bench.tokens.expand(b, -1))
        x, epsilon = bench.latents[index.to(device)], d.epsilon.to(device)
        t = bench.objective.times(d.u, bench.denoiser.tokens(d.shape)).to(device)
        with cast(args):
            guess = bench.denoiser.predict(bench.objective.noisy(x, epsilon, t), t, bench.text.first(b))
        loss = (guess - bench.objective.value(x, epsilon, t)).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, training.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(training, step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        wait(device)
        seconds.append(time.perf_counter() - start)
    unet.unload_lora()
    return seconds, torch.stack(losses).tolist(), time.process_time() - work


def packed(bench: Bench, training: Training, K: int, args: argparse.Namespace, whole: bool = True):
    """Arm (c): K LoRAs by the pack loop, saving state as it does; seconds, rows of the log, the processor's seconds."""
    unet, texts = bench.denoiser.module, {bench.shape: bench.text}
    modules = bench.denoiser.layers(training.targets)
    material = pack.Material(bench.denoiser, bench.objective, {bench.shape: bench.latents}, texts, modules)
    layers = stacked.stack(unet, modules, K, training.rank, 1.0)
    names = [f"bench/{k:02d}" for k in range(K)]
    stacked.initialise(layers, initial_seeds(modules, names, 0, "own"))
    pictures = {bench.shape: [(i, str(i)) for i in range(PICTURES)]}
    adapters = [pack.Adapter(name, pictures, k, k) for k, name in enumerate(names)]
    try:
        with tempfile.TemporaryDirectory() as folder:
            wait(args.device)
            start, work = time.perf_counter(), time.process_time()
            # On a GPU the trainer needs no autocast: its base is bfloat16.
            with cast(args) if args.device == "cpu" else nullcontext():
                done = pack.run(
                    material,
                    layers,
                    adapters,
                    training,
                    Path(folder) / "pack.pt",
                    pack.Limits(checkpoint_every=50 if whole else 10**9),
                )
            wait(args.device)
            return time.perf_counter() - start, done.history, time.process_time() - work
    finally:
        stacked.unstack(unet, layers)


def alone(args: argparse.Namespace, lora: int) -> dict[str, Any]:
    """Arm (b): one LoRA in a process of its own; its steps, and all else that the process took."""
    command = [sys.executable, __file__, "--child", str(lora)]
    for name in ("device", "base", "resolution", "rank", "steps", "threads", "precision"):
        command += [f"--{name}", str(getattr(args, name))]
    start = time.perf_counter()
    done = subprocess.run(command + ["--reduced"] * args.reduced, stdout=subprocess.PIPE, text=True, check=True)
    wall = time.perf_counter() - start
    found = json.loads(done.stdout.splitlines()[-1])
    return {**found, "start": wall - sum(found["seconds"])}


def flops(bench: Bench, device: str) -> float:
    """Of a step of one sample, forward and backward, in the base alone."""
    x, t = bench.latents[:1].clone().requires_grad_(), torch.zeros(1, dtype=torch.long, device=device)
    with FlopCounterMode(display=False) as counter:
        bench.denoiser.predict(x, t, bench.text).sum().backward()
    return counter.get_total_flops()


def matrix_rate(device: str) -> float:
    """The device's own rate in a large matrix product, FLOP/s, in the numbers that the base has."""
    n = 8192 if device == "cuda" else 1024
    a = torch.randn(n, n, device=device, dtype=bases.DTYPES[device])
    times = []
    for _ in range(10):
        wait(device)
        start = time.perf_counter()
        a @ a
        wait(device)
        times.append(time.perf_counter() - start)
    return 2 * n**3 / min(times)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    bench, training = prepare(args), recipe(args, args.steps)
    K, rounds = max(args.packs), []
    sequential(bench, training | {"steps": 2}, 99, True, args)  # libraries warm up
    for number in range(args.rounds):
        a_seconds, a_losses, a_work = sequential(bench, training, number, True, args)
        b = alone(args, number)
        c_seconds, history, c_work = packed(bench, training, K, args)
        last = [row["loss"] for row in history if row["step"] == args.steps and row["lora"] == f"bench/{number:02d}"]
        tail = len(a_losses) - max(0, (args.steps - 1) // pack.LOG_EVERY * pack.LOG_EVERY)
        rounds.append(
            {
                "a_step": sum(a_seconds) / args.steps,
                "b_step": sum(b["seconds"]) / args.steps,
                "b_start": b["start"],
                "c_step": c_seconds / args.steps / K,
                # Of the processor: what others do on the machine strikes these less.
                "a_work": a_work / args.steps,
                "b_work": b["work"] / args.steps,
                "c_work": c_work / args.steps / K,
                "a_loss": sum(a_losses[-tail:]) / tail,
                "b_loss": sum(b["losses"][-tail:]) / tail,
                "c_loss": last[0],
            }
        )
        print(json.dumps(rounds[-1]), flush=True)
    per_sample = flops(bench, args.device)
    sweep = []
    for k in sorted(args.packs):
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        try:
            packed(bench, training | {"steps": 2}, k, args, whole=False)
            seconds, _, work = packed(bench, training | {"steps": args.sweep_steps}, k, args, whole=False)
        except torch.OutOfMemoryError:
            break
        each = seconds / args.sweep_steps / k
        memory = torch.cuda.max_memory_allocated() if args.device == "cuda" else None
        work /= args.sweep_steps * k
        sweep.append({"K": k, "seconds": each, "work": work, "rate": BATCH * per_sample / each, "memory": memory})
        print(json.dumps(sweep[-1]), flush=True)
    return {
        "base": args.base,
        "resolution": args.resolution,
        "K": K,
        "rank": args.rank,
        "batch": BATCH,
        "lora_steps": args.lora_steps,
        "steps": args.steps,
        "threads": args.threads,
        "precision": args.precision,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else processor(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
        "load": os.getloadavg()[0],
        "matrix_rate": matrix_rate(args.device),
        "flops_per_sample": per_sample,
        "rounds": rounds,
        "sweep": sweep,
    }


def bare(bench: Bench, K: int) -> float:
    """Processor seconds of a LoRA's step in the frozen base alone, forward and backward over a pack's batch: what is
    left of a pack whose adapters and optimizer cost nothing."""
    x = bench.latents[torch.arange(K * BATCH) % PICTURES].clone().requires_grad_()
    t = bench.objective.times(torch.full((K * BATCH,), 0.5), bench.denoiser.tokens(bench.shape)).to(x.device)
    start = time.process_time()
    bench.denoiser.predict(x, t, bench.text.first(K * BATCH)).square().mean().backward()
    return (time.process_time() - start) / K


def turns(args: argparse.Namespace) -> str:
    """(a) and (c) alone in many short turns, which neighbours on the machine strike alike; and the base by itself,
    which no packing can save."""
    bench, K, found = prepare(args), max(args.packs), []
    sequential(bench, recipe(args, 2), 99, True, args)
    packed(bench, recipe(args, 1), K, args)
    bare(bench, K)
    for number in range(args.turns):
        seconds, _, a_work = sequential(bench, recipe(args, 10), number, True, args)
        c_seconds, _, c_work = packed(bench, recipe(args, 3), K, args, whole=False)
        a, c, base = sum(seconds) / 10, c_seconds / (3 * K), bare(bench, K)
        worked = a_work / 10 / (c_work / (3 * K))
        found.append((100 * a_work, 1e3 * c_work / (3 * K), 1e3 * base, worked, a / c, a_work / 10 / base))
    names = ("(a), ms of processor", "(c), ms of processor", "base alone, ms of processor")
    names += ("ratio, processor", "ratio, clock", "(a) by base alone")
    columns = zip(names, zip(*found, strict=True), strict=True)
    return "\n".join(f"{n}: {median(v):.2f} ({min(v):.2f}–{max(v):.2f})" for n, v in columns)


def machine(args: argparse.Namespace) -> str:
    """(a) and (c) on the whole machine, in turns: LoRAs an hour of one loop with all threads, of a loop on every core,
    and of packs on every core, one thread each, as the workflow runs them."""
    cores, K, found = os.cpu_count() or 1, max(args.packs), []
    arms = {
        "(a), all threads": ("a", 1, cores),
        "(a), a core each": ("a", cores, 1),
        "(c), a core each": ("c", cores, 1),
    }
    for _ in range(args.machine):
        found.append([_together(args, arm, processes, threads, K) for arm, processes, threads in arms.values()])
    lines = [
        f"{name}: {median(rates):.0f} LoRAs an hour ({min(rates):.0f}–{max(rates):.0f})"
        for name, rates in zip(arms, zip(*found, strict=True), strict=True)
    ]
    for i, name in enumerate(list(arms)[:2]):
        ratios = [row[2] / row[i] for row in found]
        lines.append(f"(c) is {median(ratios):.1f}× ({min(ratios):.1f}–{max(ratios):.1f}) as fast as {name}")
    return "\n".join(lines)


def _together(args: argparse.Namespace, arm: str, processes: int, threads: int, K: int) -> float:
    """LoRAs an hour of so many processes at once; their starts are not counted."""
    command = [sys.executable, __file__, "--worker", arm, "--threads", str(threads), "--packs", str(K)]
    for name in ("device", "base", "resolution", "rank"):
        command += [f"--{name}", str(getattr(args, name))]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OMP_")}
    running = [
        subprocess.Popen([*command, "--steps", str(args.steps)], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(processes)
    ]
    seconds = [float(process.communicate()[0].split()[-1]) for process in running]
    return sum(3600 / (args.lora_steps * each) for each in seconds)


def worker(args: argparse.Namespace) -> float:
    """Seconds of a LoRA's step in this process."""
    bench, K = prepare(args), max(args.packs)
    if args.worker == "a":
        sequential(bench, recipe(args, 2), 0, True, args)
        return sum(sequential(bench, recipe(args, args.steps), 0, True, args)[0]) / args.steps
    packed(bench, recipe(args, 1), K, args, whole=False)
    steps = max(args.steps // 4, 2)
    return packed(bench, recipe(args, steps), K, args, whole=False)[0] / steps / K


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} × {names[0]}" if names else platform.processor()


def rates(found: dict[str, Any]) -> dict[str, list[float]]:
    """LoRAs an hour of each arm, round by round."""
    n, rounds = found["lora_steps"], found["rounds"]
    return {
        "a": [3600 / (n * r["a_step"]) for r in rounds],
        "b": [3600 / (n * r["b_step"] + r["b_start"]) for r in rounds],
        "c": [3600 / (n * r["c_step"]) for r in rounds],
    }


def report(found: dict[str, Any]) -> str:
    by = rates(found)
    lines = [
        "| arm | LoRAs an hour, median (range) | (c) is faster by, round by round | processor, ms a LoRA and step | "
        "loss of the last steps |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    names = {"a": "(a) sequential diffusers + PEFT, cached", "b": "(b) a process per LoRA, no caches", "c": "(c) packs"}
    for arm, values in by.items():
        times = [c / v for c, v in zip(by["c"], values, strict=True)]
        spread = f"{median(times):.1f}× ({min(times):.1f}–{max(times):.1f})" if arm != "c" else ""
        loss = sum(r[f"{arm}_loss"] for r in found["rounds"]) / len(found["rounds"])
        work = 1e3 * median([r[f"{arm}_work"] for r in found["rounds"]])
        hour = f"{median(values):.0f} ({min(values):.0f}–{max(values):.0f})"
        lines.append(f"| {names[arm]} | {hour} | {spread} | {work:.0f} | {loss:.4f} |")
    return "\n".join(lines)


def chart(found: dict[str, Any], path: str) -> None:
    import altair as alt
    import pandas as pd

    names = {"a": "(a) diffusers + PEFT, cached", "b": "(b) a process per LoRA", "c": f"(c) packs of {found['K']}"}
    by = rates(found)
    rows = [{"arm": names[arm], "LoRAs an hour": v} for arm, values in by.items() for v in values]
    colour = alt.Color("arm:N", legend=None, scale=alt.Scale(range=["#8a8d96", "#b8b2a7", "#c8452d"]))
    bars = alt.Chart(pd.DataFrame(rows)).encode(y=alt.Y("arm:N", title=None, axis=alt.Axis(labelLimit=260)))
    x = alt.X("median(LoRAs an hour):Q", title="LoRAs an hour: median of the rounds, each a point")
    left = (
        bars.mark_bar(height=22).encode(x=x, color=colour)
        + bars.mark_point(color="#22242a", size=18, filled=True).encode(x="LoRAs an hour:Q")
    ).properties(width=360, height=170)
    # A shared machine's clock is no measure of a curve; its processor time is. A GPU is not shared.
    kind, what = ("seconds", "") if found["sweep"][0]["memory"] else ("work", "processor, ")
    each = pd.DataFrame([{"K": s["K"], "ms": 1e3 * s[kind]} for s in found["sweep"]])
    right = (
        alt.Chart(each)
        .mark_line(point=alt.OverlayMarkDef(color="#c8452d"), color="#c8452d")
        .encode(x=alt.X("K:Q", title="K, LoRAs in one model"), y=alt.Y("ms:Q", title=f"{what}ms a LoRA and step"))
        .properties(width=260, height=170)
    )
    title = f"Training on the {found['base']} base, {found['resolution']} px: {found['device']}"
    (left | right).properties(title=title, background="#fffdf8").save(path, ppi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--base", default="mini", choices=["mini", "mini_flow", "sd15", "sdxl"])
    parser.add_argument("--reduced", action="store_true", help="sd15 and sdxl with a tenth of their channels")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--packs", type=int, nargs="+", default=[1, 3, 6, 12, 18, 24], help="K; the arms use the last")
    parser.add_argument("--steps", type=int, default=40, help="steps that are measured, of each arm and round")
    parser.add_argument("--sweep-steps", type=int, default=8)
    parser.add_argument("--lora-steps", type=int, default=320, help="steps of a whole LoRA")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--precision",
        default="auto",
        choices=["auto", "bfloat16"],
        help="auto: as the trainer has it; bfloat16: all arms by autocast on a CPU too",
    )
    parser.add_argument("--json", help="write the measurements here")
    parser.add_argument("--chart", help="draw them here (PNG)")
    parser.add_argument("--turns", type=int, help="only (a) and (c), in so many short turns")
    parser.add_argument("--machine", type=int, metavar="TURNS", help="only (a) and (c), on all cores at once")
    parser.add_argument("--worker", choices=["a", "c"], help=argparse.SUPPRESS)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.child is not None:
        seconds, losses, work = sequential(prepare(args), recipe(args, args.steps), args.child, False, args)
        print(json.dumps({"seconds": seconds, "losses": losses, "work": work}))
        return
    if args.worker:
        print(worker(args))
        return
    if args.turns or args.machine:
        print(turns(args) if args.turns else machine(args))
        return
    found = measure(args)
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n")
    if args.chart:
        chart(found, args.chart)
    print(report(found))


if __name__ == "__main__":
    main()
