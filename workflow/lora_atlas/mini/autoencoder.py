"""The mini autoencoder: diffusers' AutoencoderTiny, 4× down to 4 channels.

It is convolutional and has no normalisation layers, so it trains on crops at a quarter of the price of whole
pictures. Latents are kept near unit scale by a small penalty, and the decoder learns to forgive small errors by
noise on the latents: a sampler's latents are never exact.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny

from .corpus import load
from .loop import batch, fit, stage_seed, write_log


def architecture() -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(32, 32, 32),
        decoder_block_out_channels=(32, 32, 32),
        num_encoder_blocks=(1, 2, 2),
        num_decoder_blocks=(2, 2, 1),
        latent_channels=4,
    )


def pretrain(pictures: np.ndarray, *, steps: int, seed: int, state: Path, crop: int = 32, size: int = 32):
    """Train on uint8 pictures (N, S, S, 3); returns (model with its scaling factor set, log)."""
    torch.manual_seed(seed)
    model = architecture().to(memory_format=torch.channels_last)
    whole = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    side = whole.shape[-1]

    def loss(mean: torch.nn.Module, generator: torch.Generator) -> torch.Tensor:
        index = batch(len(whole), size, generator)
        corners = torch.randint(side - crop + 1, (size, 2), generator=generator)
        x = torch.stack(
            [whole[i, :, y : y + crop, x : x + crop] for i, (y, x) in zip(index, corners.tolist(), strict=True)]
        )
        x = (x.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        z = model.encode(x).latents
        noise = torch.randn(z.shape, generator=generator)
        y = model.decode(z + 0.05 * noise).sample
        return (y - x).square().mean() + 0.05 * (y - x).abs().mean() + 1e-3 * z.square().mean()

    model, log = fit(
        "autoencoder",
        model,
        loss,
        steps=steps,
        learning_rate=2e-3,
        seed=seed,
        state=state,
        average=0.998,
        every=250,
        data=pictures,
    )
    z = encode(model, pictures[:1024])
    model.register_to_config(scaling_factor=1 / float(z.std()))
    return model, log


@torch.no_grad()
def encode(model: AutoencoderTiny, pictures: np.ndarray, size: int = 64) -> torch.Tensor:
    """Unscaled latents (N, 4, S/4, S/4) of uint8 pictures (N, S, S, 3)."""
    parts = [
        torch.from_numpy(p).permute(0, 3, 1, 2).float() / 127.5 - 1
        for p in np.split(pictures, range(size, len(pictures), size))
    ]
    return torch.cat([model.encode(part).latents for part in parts])


@torch.no_grad()
def psnr(model: AutoencoderTiny, pictures: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio (dB) of each reconstruction, on the 0…255 scale after rounding."""
    values = []
    for part in np.split(pictures, range(64, len(pictures), 64)):
        y = model.decode(encode(model, part)).sample
        y = ((y + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()
        error = np.square(y - part.astype(np.float32)).mean(axis=(1, 2, 3))
        values.append(10 * np.log10(255**2 / np.maximum(error, 1e-9)))
    return np.concatenate(values)


def build(corpus: str | Path, folder: str | Path, log: str | Path, *, steps: int, seed: int, state: str | Path) -> None:
    """The stage: corpus file → model folder and loss log."""
    model, losses = pretrain(
        load(corpus).pictures, steps=steps, seed=stage_seed(seed, "autoencoder"), state=Path(state)
    )
    model.to(memory_format=torch.contiguous_format).save_pretrained(folder)
    write_log(log, losses)
    Path(state).unlink(missing_ok=True)
