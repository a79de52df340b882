"""The mini CLIP: open_clip's own model class, a ViT of 64 tokens and a two-layer text tower (Radford et al. 2021).

The vocabulary is open_clip's stock one, so that its tokenizer serves; the text tower is kept narrow because of it.
Loads with ``open_clip.create_model_and_transforms("local-dir:FOLDER")``.
"""

import json
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from .corpus import load
from .loop import batch, fit, stage_seed, write_log

MEAN, STD = (0.45, 0.42, 0.38), (0.25, 0.24, 0.24)


def config(size: int) -> dict:
    return {
        "embed_dim": 64,
        "vision_cfg": {"image_size": size, "layers": 4, "width": 128, "head_width": 32, "patch_size": 8},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }


def pretrain(pictures: np.ndarray, captions: tuple[str, ...], *, steps: int, seed: int, state: Path, size: int = 96):
    """Contrastive training on uint8 pictures (N, S, S, 3) and their captions; returns (model, log)."""
    torch.manual_seed(seed)
    model = open_clip.CLIP(**config(pictures.shape[1]))
    words = open_clip.SimpleTokenizer(context_length=32)
    texts = words(list(captions))
    whole = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)

    def loss(_: torch.nn.Module, generator: torch.Generator) -> torch.Tensor:
        index = batch(len(whole), size, generator)
        x = (whole[index].float() / 255 - mean) / std
        flip = torch.rand(size, generator=generator) < 0.5
        x = torch.where(flip.view(-1, 1, 1, 1), x.flip(-1), x)
        image, text, scale = model(x, texts[index])
        logits = scale.clamp(max=50) * image @ text.T
        # Two pictures with one caption are both right answers to it.
        same = (texts[index][:, None] == texts[index][None]).all(-1).float()
        target = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    return fit(
        "clip",
        model,
        loss,
        steps=steps,
        learning_rate=1e-3,
        weight_decay=0.05,
        seed=seed,
        state=state,
        every=50,
        data=pictures,
    )


def save(model: torch.nn.Module, folder: Path, size: int) -> None:
    """Write the folder in the format that open_clip reads; half precision keeps the stock vocabulary small."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    described = {"model_cfg": config(size), "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(described, indent=2) + "\n")
    tensors = {key: value.half().contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors", metadata={"format": "pt"})


def build(corpus: str | Path, folder: str | Path, log: str | Path, *, steps: int, seed: int, state: str | Path) -> None:
    """The stage: corpus file → model folder and loss log."""
    painted = load(corpus)
    model, losses = pretrain(
        painted.pictures, painted.captions, steps=steps, seed=stage_seed(seed, "clip"), state=Path(state)
    )
    save(model, Path(folder), painted.pictures.shape[1])
    write_log(log, losses)
    Path(state).unlink(missing_ok=True)
