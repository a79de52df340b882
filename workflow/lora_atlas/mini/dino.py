"""The mini DINO: a timm ViT trained by self-distillation without labels (Caron et al. 2021).

Student and teacher see different crops of one picture; the teacher is the moving average of the student. Its outputs
are spread over the prototypes by Sinkhorn–Knopp instead of a running centre (Caron et al. 2020, §3.1; DINOv2 does so
too): in a training as short as this one, a running centre lags and the outputs collapse for the first half of it.
Loads with ``timm.create_model("local-dir:FOLDER", pretrained=True, num_classes=0)``.
"""

import json
import math
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from .corpus import load
from .loop import batch, fit, stage_seed, write_log

MEAN, STD = (0.45, 0.42, 0.38), (0.25, 0.24, 0.24)
ARCHITECTURE = "vit_tiny_patch16_224"
PROTOTYPES = 256


def model_args(size: int) -> dict:
    return {"img_size": size, "patch_size": 8, "embed_dim": 128, "depth": 4, "num_heads": 4, "dynamic_img_size": True}


class Distilled(torch.nn.Module):
    """Backbone and projection head onto prototypes; outputs are cosines."""

    def __init__(self, size: int):
        super().__init__()
        self.backbone = timm.create_model(ARCHITECTURE, num_classes=0, **model_args(size))
        self.head = torch.nn.Sequential(
            torch.nn.Linear(128, 256),
            torch.nn.GELU(),
            torch.nn.Linear(256, 256),
            torch.nn.GELU(),
            torch.nn.Linear(256, 64),
        )
        self.prototypes = torch.nn.Linear(64, PROTOTYPES, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = F.normalize(self.head(self.backbone(x)), dim=-1)
        return F.linear(z, F.normalize(self.prototypes.weight, dim=-1))


def crops(x: torch.Tensor, side: int, scale: tuple[float, float], generator: torch.Generator) -> torch.Tensor:
    """Random resized crops with flips, and a jitter of brightness, contrast and colour; x (N, 3, S, S) in 0…1."""
    n = len(x)
    low, high = scale
    zoom = torch.sqrt(low + (high - low) * torch.rand(n, generator=generator))
    shift = (torch.rand(n, 2, generator=generator) * 2 - 1) * (1 - zoom[:, None])
    flip = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = zoom * flip, zoom, shift
    grid = F.affine_grid(theta, [n, 3, side, side], align_corners=False)
    y = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    gain = 1 + 0.3 * (torch.rand(n, 3, 1, 1, generator=generator) * 2 - 1)  # a cast of colour as well as of light
    contrast = 1 + 0.3 * (torch.rand(n, 1, 1, 1, generator=generator) * 2 - 1)
    mean = y.mean(dim=(1, 2, 3), keepdim=True)
    y = (((y - mean) * contrast + mean) * gain).clamp(0, 1)
    return (y - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def spread(scores: torch.Tensor, temperature: float = 0.05, rounds: int = 3) -> torch.Tensor:
    """Assignments (n, k) whose rows are distributions and whose columns are used alike, by Sinkhorn–Knopp."""
    Q = torch.exp((scores - scores.max()) / temperature)
    for _ in range(rounds):
        Q = Q / Q.sum(0, keepdim=True).clip(1e-12)
        Q = Q / Q.sum(1, keepdim=True).clip(1e-12)
    return Q


def pretrain(pictures: np.ndarray, *, steps: int, seed: int, state: Path, size: int = 64):
    """Self-distillation on uint8 pictures (N, S, S, 3); returns (teacher's backbone, log)."""
    torch.manual_seed(seed)
    side = pictures.shape[1]
    student = Distilled(side)
    whole = torch.from_numpy(pictures).permute(0, 3, 1, 2)

    def loss(teacher: torch.nn.Module, generator: torch.Generator) -> torch.Tensor:
        x = whole[batch(len(whole), size, generator)].float() / 255
        wide = [crops(x, side, (0.4, 1.0), generator) for _ in range(2)]
        near = [crops(x, side // 2, (0.1, 0.4), generator) for _ in range(2)]
        with torch.no_grad():
            target = [spread(part) for part in teacher(torch.cat(wide)).chunk(2)]
        guess = [*student(torch.cat(wide)).chunk(2), *student(torch.cat(near)).chunk(2)]
        terms = [
            -(t * torch.log_softmax(s / 0.1, -1)).sum(-1).mean()
            for i, t in enumerate(target)
            for j, s in enumerate(guess)
            if i != j
        ]
        total = sum(terms)
        assert isinstance(total, torch.Tensor)  # there are always terms
        return total / len(terms) / math.log(PROTOTYPES)  # 1 is a guess that knows nothing

    mean, log = fit(
        "dino", student, loss, steps=steps, learning_rate=1e-3, weight_decay=0.04, seed=seed, state=state,
        average=0.99, every=50, data=pictures,
    )  # fmt: skip
    return mean.backbone, log


def save(backbone: torch.nn.Module, folder: Path, size: int) -> None:
    """Write the folder in the format that timm reads."""
    folder.mkdir(parents=True, exist_ok=True)
    described = {
        "architecture": ARCHITECTURE,
        "num_classes": 0,
        "num_features": 128,
        "global_pool": "token",
        "model_args": model_args(size),
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "mean": MEAN,
            "std": STD,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "num_classes": 0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n")
    tensors = {key: value.contiguous() for key, value in backbone.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def build(corpus: str | Path, folder: str | Path, log: str | Path, *, steps: int, seed: int, state: str | Path) -> None:
    """The stage: corpus file → model folder and loss log."""
    painted = load(corpus)
    model, losses = pretrain(painted.pictures, steps=steps, seed=stage_seed(seed, "dino"), state=Path(state))
    save(model, Path(folder), painted.pictures.shape[1])
    write_log(log, losses)
    Path(state).unlink(missing_ok=True)
