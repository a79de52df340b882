"""Real architectures at full size, with random weights: a pack of two LoRAs is trained, exported, and loaded by stock
diffusers with equal outputs.

    python benchmarks/full_size.py sd15 sdxl sd35_medium        on the CPU: 4, 11 and 10 GB of weights in float32
    python benchmarks/full_size.py flux --layers 2 4            FLUX.1, reduced in depth as memory demands
    python benchmarks/full_size.py flux --device cuda --resolution 512

Each architecture is built from the configuration of the released model (loras/families), without its autoencoder and
text encoders: latents and embeddings are random, of the sizes that these would give. Prints seconds of a step, the
highest use of memory, and the largest difference between our outputs and those of stock diffusers. Not part of CI.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "workflow"))

import diffusers
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from lora_atlas.diffusion import pack, stacked
from lora_atlas.diffusion.denoisers import Conditioning, Denoiser
from lora_atlas.diffusion.denoisers.flux import Flux
from lora_atlas.diffusion.denoisers.sd3 import SD3
from lora_atlas.diffusion.denoisers.unet import UNet
from lora_atlas.diffusion.objectives import objective_of
from lora_atlas.diffusion.streams import initial_seeds
from lora_atlas.loras.factors import Update
from lora_atlas.loras.families.released import RELEASED
from lora_atlas.loras.files import write_lora
from lora_atlas.sections import Training

LORAS = ("a/00", "a/01")
# Family, released size, denoiser, and what its text is: name → shape of one prompt's.
BASES: dict[str, tuple[str, str | None, type[Denoiser], dict[str, tuple[int, ...]]]] = {
    "sd15": ("SD1.x", None, UNet, {"embeds": (77, 768)}),
    "sdxl": ("SDXL", None, UNet, {"embeds": (77, 2048), "pooled": (1280,), "time_ids": (6,)}),
    "sd35_medium": ("SD3", "3.5 medium", SD3, {"embeds": (333, 4096), "pooled": (2048,)}),
    "flux": ("FLUX", "dev", Flux, {"embeds": (512, 4096), "pooled": (768,)}),
}


def network(name: str, device: str, layers: list[int] | None) -> torch.nn.Module:
    """The network of a released model with random weights; `layers`: of FLUX's two kinds of blocks, if fewer."""
    family, variant, _, _ = BASES[name]
    known = next(each for each in RELEASED if each.family == family and variant in (None, each.variant))
    config: dict[str, Any] = dict(known.config)
    if layers:
        config |= dict(zip(("num_layers", "num_single_layers"), layers, strict=True))
    # Random numbers once, in place: constructors would draw them several times over.
    with torch.device("meta"):
        built = getattr(diffusers, known.cls)(**config)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    built = built.to(dtype).to_empty(device=device).requires_grad_(False).eval()
    generator = torch.Generator(device).manual_seed(0)
    for key, tensor in built.state_dict().items():
        if "norm" in key and key.endswith("weight") and tensor.ndim == 1:
            tensor.fill_(1)
        else:
            tensor.normal_(std=0.02, generator=generator)
    return built


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bases", nargs="+", choices=list(BASES))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--resolution", type=int, default=128, help="px (default 128)")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--layers", type=int, nargs=2, metavar=("DOUBLE", "SINGLE"), help="FLUX.1's blocks, if fewer")
    given = parser.parse_args()
    print(
        "| base | parameters | seconds a step of 2 LoRAs | GB at most | outputs differ by |\n|---|---:|---:|---:|---:|"
    )
    for name in given.bases:
        print(row(name, given), flush=True)


def row(name: str, given: argparse.Namespace) -> str:
    _, _, kind, texts = BASES[name]
    module = network(name, given.device, given.layers if name == "flux" else None)
    pipeline = SimpleNamespace(unet=module, transformer=module, vae_scale_factor=8, config={})
    denoiser = kind(pipeline)
    torch.manual_seed(1)
    shape = denoiser.latent_shape(given.resolution)
    text = Conditioning(
        {key: torch.randn(1, *size, device=given.device, dtype=module.dtype) for key, size in texts.items()}
    )
    scheduler = DDPMScheduler() if kind is UNet else FlowMatchEulerDiscreteScheduler(shift=3.0)
    objective = objective_of(scheduler, given.device, density=denoiser.density)
    training = recipe(given)
    modules = denoiser.layers(training.targets)
    latents = {(shape[1], shape[2]): torch.randn(2, *shape, device=given.device)}
    material = pack.Material(denoiser, objective, latents, {(shape[1], shape[2]): text}, modules)
    layers = stacked.stack(module, modules, len(LORAS), training.rank, 1.0)
    stacked.initialise(layers, initial_seeds(list(layers), LORAS, 0, "shared"))
    adapters = [pack.Adapter(lora, {(shape[1], shape[2]): [(k, str(k))]}, k, k) for k, lora in enumerate(LORAS)]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        pack.run(material, layers, adapters, training, Path(folder, "pack.pt"), pack.Limits())
        seconds = (time.perf_counter() - start) / training.steps
        peak = peak_memory(given.device)
        stacked.select(layers, torch.tensor([0], device=given.device))
        ours = guess(denoiser, shape, text)
        updates = {}
        for layer, (A, B) in stacked.factors(layers, 0).items():
            A, B = stacked.as_stored(layers[layer].frozen, A, B)
            updates[denoiser.prefix + layer] = Update(denoiser.prefix + layer, A.numpy(), B.numpy())
        write_lora(Path(folder, "lora.safetensors"), updates, dict(denoiser.header))
        stacked.unstack(module, layers)
        plain = guess(denoiser, shape, text)
        module.load_lora_adapter(folder, weight_name="lora.safetensors", prefix=denoiser.component)
        stock = guess(denoiser, shape, text)
    count = sum(p.numel() for key, p in module.named_parameters() if "lora_" not in key)
    differ = float((ours - stock).abs().max() / (plain - stock).abs().max())
    return f"| {name} | {count:,} | {seconds:.1f} | {peak:.1f} | {differ:.1e} of what the LoRA changes |"


def recipe(given: argparse.Namespace) -> Training:
    return Training(
        resolution=given.resolution, aspect_ratio_buckets=False, caption="", rank=4, alpha=4,
        targets=("attention", "feed_forward"), init="shared", noise="own", steps=given.steps, batch=1,
        learning_rate=1e-2, warmup=0, lr_schedule="constant", weight_decay=0.0, max_grad_norm=1.0, loss="epsilon",
        min_snr_gamma=5.0,
    )  # fmt: skip


@torch.no_grad()
def guess(denoiser: Denoiser, shape: tuple[int, int, int], text: Conditioning) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, *shape, generator=generator).to(denoiser.device)
    return denoiser.predict(x, torch.tensor([500], device=denoiser.device), text)


def peak_memory(device: str) -> float:
    """GB at most since the program began."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
