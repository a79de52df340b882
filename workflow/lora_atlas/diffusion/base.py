"""The frozen base model: any latent diffusion pipeline of diffusers, from a folder or a pinned hub revision.

Nothing here asks which model it is. What differs between architectures is behind denoisers/ and objectives/. Weights
are read from safetensors only: a pickle that happens to lie beside them is never a fallback.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from ..sections import Base
from .denoisers import DENOISERS, denoiser_of, kind_of
from .errors import BaseModelError
from .room import in_parts

# Local folders say what they are by content, hub models by id and revision.
DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}


def pick_device(device: str) -> str:
    """ "auto" → cuda where there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def load(base: Base, *, device: str) -> Any:
    """The pipeline, frozen and in evaluation mode, on `device`; raises BaseModelError.

    `base.variant` names the files to read, as in ``unet/diffusion_pytorch_model.fp16.safetensors``. Numbers are
    bfloat16 on a GPU and float32 on a CPU, whatever the files hold; an autoencoder that asks for it stays float32.
    """
    model, revision, variant = base.model, base.revision, base.variant
    local = Path(model).is_dir()
    if not local and (revision is None or model.startswith((".", "/")) or model.count("/") != 1):
        raise BaseModelError(
            f"base.model: {model!r} is not a folder here, and as a hub id it needs base.revision (a commit hash). "
            "Put a diffusers folder there (model_index.json, unet/ or transformer/, vae/, text_encoder/, tokenizer/, "
            "scheduler/), or give id and revision."
        )
    try:
        index = DiffusionPipeline.load_config(model, revision=revision)
        kind_of(index)  # before anything large is fetched
        # A part that was saved as none (SD3's T5 may be left out) is only taken for none where that is said again.
        absent = {name: None for name, part in index.items() if part in ([None, None], (None, None))}
        # The safety checker is a model of its own that would judge pictures which nobody sees.
        unsafe = {"safety_checker": None, "requires_safety_checker": False} if "safety_checker" in index else {}
        # What looks at given pictures is asked for none here, and not among the files that are fetched.
        unsafe |= {name: None for name in ("feature_extractor", "image_encoder") if name in index}
        pipeline = DiffusionPipeline.from_pretrained(
            model, revision=revision, variant=variant, dtype=DTYPES[device], use_safetensors=True, **(absent | unsafe)
        )
    except BaseModelError:
        raise
    except (OSError, ValueError) as error:
        raise BaseModelError(
            f"base.model: cannot load {model!r} (revision {revision}, variant {variant}) from safetensors: {error}"
        ) from error
    denoiser = denoiser_of(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval().to(device)
    if getattr(pipeline.vae.config, "force_upcast", False):
        pipeline.vae.float()  # SDXL's overflows in half precision, and loses colour in bfloat16
    if device == "cpu":
        denoiser.module.to(memory_format=torch.channels_last)  # oneDNN's own order: no copies between convolutions
    return pipeline


def drop_encoders(pipeline: Any) -> None:
    """Give up a pipeline's text encoders once all prompts are encoded: of many bases they are the larger half."""
    for name in [name for name in pipeline.components if name.startswith("text_encoder")]:
        setattr(pipeline, name, None)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def identity(base: Base) -> str:
    """What a LoRA's header says of its base: hub id and revision, or a folder's name and the hash of all its parts, as
    what is trained depends on the schedule, the text encoders and the autoencoder, too."""
    folder = Path(base.model)
    if not folder.is_dir():
        return f"{base.model}@{base.revision}" + (f" {base.variant}" if base.variant else "")
    digest = hashlib.sha256()
    index = json.loads((folder / "model_index.json").read_text())
    parts = sorted({*(name for name in index if not name.startswith("_")), *(kind.component for kind in DENOISERS)})
    files = [file for part in parts for file in sorted((folder / part).glob("*")) if file.is_file()]
    for file in [folder / "model_index.json", *files]:
        digest.update(json.dumps(file.relative_to(folder).as_posix()).encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return f"{folder.name}@sha256:{digest.hexdigest()}"


@torch.no_grad()
def encode_pictures(pipeline: Any, pictures: torch.Tensor, size: int = 16) -> torch.Tensor:
    """Latents float32 (n, c, h, w), as the network knows them, of pictures (n, 3, H, W) in -1…1."""
    vae, denoiser = pipeline.vae, denoiser_of(pipeline)

    def encoded(part: slice) -> torch.Tensor:
        return denoiser.encode_pictures(vae, pictures[part].to(vae.device, vae.dtype))

    return torch.cat(in_parts(encoded, len(pictures), size, "latents of pictures"))


@torch.no_grad()
def decode_latents(pipeline: Any, latents: torch.Tensor, size: int = 16) -> torch.Tensor:
    """Pictures uint8 (n, H, W, 3) on the CPU of such latents (n, c, h, w)."""
    denoiser = denoiser_of(pipeline)

    def decoded(part: slice) -> torch.Tensor:
        x = denoiser.decode_latents(pipeline.vae, latents[part]).float()
        return ((x / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()

    return torch.cat(in_parts(decoded, len(latents), size, "pictures of latents"))


def set_threads() -> None:
    """As many threads as the rule has given to the job."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
