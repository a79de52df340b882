"""The sensitivity of a base: against gradients that need no hooks, the same bytes each time, measured once."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from scipy.stats import spearmanr

from lora_atlas.diffusion import sensitivity as room
from lora_atlas.diffusion import stacked
from lora_atlas.diffusion.base import load
from lora_atlas.diffusion.denoisers.unet import UNet
from lora_atlas.diffusion.errors import TrainingError
from lora_atlas.diffusion.generate import initial_noise
from lora_atlas.diffusion.sensitivity import Sensitivity, cached, measure, write
from lora_atlas.sections import Base, Probe
from lora_atlas.weights.metric import read_metric

TARGETS = ["attention", "feed_forward", "convolution"]
PROBE = Probe(
    **{
        "samples": 5,
        "num_inference_steps": 2,
        "batch": 2,
        "prompts": ["a painting of a landscape", "a painting of a portrait"],
        "seed": 3,
    }
)
LAYERS = [  # of each kind: tokens of the picture and of the prompt, convolutions with and without a stride
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    "up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_v",
    "mid_block.attentions.0.transformer_blocks.0.ff.net.2",
    "down_blocks.0.resnets.0.conv1",
    "down_blocks.0.downsamplers.0.conv",
    "up_blocks.0.upsamplers.0.conv",
]


def run(base: str, *, moments: bool = False, targets=TARGETS, resolution: int = 32, **changes) -> Sensitivity:
    return measure(load(Base(base), device="cpu"), targets, PROBE | changes, resolution=resolution, moments=moments)


@pytest.fixture(scope="module")
def found(tiny_base) -> Sensitivity:
    return run(tiny_base, moments=True)


class Watched(torch.nn.Module):
    """A layer whose output has zeros added that ask for a gradient."""

    def __init__(self, inner: torch.nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.inner(x)
        self.x, self.y, self.zero = x.detach(), y.detach(), torch.zeros_like(y, requires_grad=True)
        return y + self.zero


def patches(conv: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """What each output of a convolution reads (tokens, channels × kernel), by slices."""
    x = torch.nn.functional.pad(x, (conv.padding[1],) * 2 + (conv.padding[0],) * 2)
    (h, w), (down, across) = conv.kernel_size, conv.stride
    rows = range(0, x.shape[2] - h + 1, down)
    return torch.cat(
        [x[:, :, i : i + h, j : j + w].flatten(1) for i in rows for j in range(0, x.shape[3] - w + 1, across)]
    )


def asked(
    base: str, monkeypatch, resolution: int = 32, **changes
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """What the network is asked for each sample, and what it should say: noisy latent, timestep, text, noise (or v)."""
    pipeline, seen, samples = load(Base(base), device="cpu"), [], []
    real = room.own_samples
    monkeypatch.setattr(room, "own_samples", lambda *a: samples.append(real(*a)) or samples[0])
    forward = pipeline.unet.forward

    def recorded(x, t, **arguments):
        if torch.is_grad_enabled():
            seen.append((x.detach(), t, arguments["encoder_hidden_states"].detach()))
        return forward(x, t, **arguments)

    monkeypatch.setattr(pipeline.unet, "forward", recorded)
    measure(pipeline, TARGETS, PROBE | changes, resolution=resolution, moments=False)
    noisy, times, text = (torch.cat(parts) for parts in zip(*seen, strict=True))
    a = pipeline.scheduler.alphas_cumprod[times].view(-1, 1, 1, 1)
    noise = (noisy - a.sqrt() * samples[0]) / (1 - a).sqrt()
    if pipeline.scheduler.config.prediction_type == "v_prediction":
        noise = a.sqrt() * noise - (1 - a).sqrt() * samples[0]
    return [tuple(part[i : i + 1] for part in (noisy, times, text, noise)) for i in range(len(times))]


@pytest.fixture(scope="module")
def questions(tiny_base):
    with pytest.MonkeyPatch.context() as patch:
        return asked(tiny_base, patch)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_has_the_squares_and_moments_of_its_gradients(tiny_base, found, questions, name):
    unet = load(Base(tiny_base), device="cpu").unet
    layer = unet.get_submodule(name)
    watched = Watched(layer)
    parent, _, leaf = name.rpartition(".")
    setattr(unet.get_submodule(parent), leaf, watched)
    conv = isinstance(layer, torch.nn.Conv2d)
    inputs, gradients = [], []
    for noisy, t, text, noise in questions:  # one by one
        loss = (unet(noisy, t, encoder_hidden_states=text).sample - noise).square().sum()
        (g,) = torch.autograd.grad(loss, watched.zero)
        x = patches(layer, watched.x) if conv else watched.x.flatten(0, -2)
        y, g = ((z.permute(0, 2, 3, 1) if conv else z).flatten(0, -2) for z in (watched.y, g))
        bias = 0 if layer.bias is None else layer.bias
        torch.testing.assert_close(x @ layer.weight.flatten(1).T + bias, y, atol=1e-5, rtol=1e-4)  # x is what it reads
        inputs.append(x.double())
        gradients.append(g.double())
    X, g = torch.cat(inputs), torch.cat(gradients)
    key, count = f"unet.{name}", len(questions)
    assert count == PROBE.samples
    assert found.weights[key] == pytest.approx(float(g.square().sum() / g.shape[1] / count), rel=1e-3)
    assert found.inputs[key] == pytest.approx(float(X.square().mean()), rel=1e-4)
    for ours, expected in ((found.sigma[key], X.T @ X / len(X)), (found.G[key], g.T @ g / count)):
        torch.testing.assert_close(ours.double(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    # w is the trace of G over its side.
    assert found.weights[key] == pytest.approx(float(found.G[key].trace()) / len(found.G[key]), rel=1e-4)


def predicted(found: Sensitivity, name: str, dW: torch.Tensor) -> float:
    """tr(G ΔW Σ ΔWᵀ): the mean square of what the update does to the loss, to first order."""
    sigma, G = (moments[f"unet.{name}"].double() for moments in (found.sigma, found.G))
    return float((G @ dW @ sigma * dW).sum())


def update(layer: torch.nn.Module, generator: torch.Generator) -> torch.Tensor:
    """An update of rank two and norm one (out, in); of a convolution, what it does to its patches."""
    out, width = layer.weight.flatten(1).shape
    B, A = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((out, 2), (2, width)))
    return B @ A / (B @ A).norm()


ALONE = [  # layers that read one token, where latents are of 2 × 2
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_v",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
    "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "up_blocks.0.attentions.1.transformer_blocks.0.ff.net.2",
    "mid_block.resnets.0.conv1",
]


def test_an_update_moves_the_loss_as_the_moments_say(tiny_base, monkeypatch):
    """Of one sample and one token the metric is the Fisher metric itself: differences of losses, without a gradient."""
    found = run(tiny_base, moments=True, resolution=4, samples=1)
    ((noisy, t, text, noise),) = asked(tiny_base, monkeypatch, resolution=4, samples=1)
    unet = load(Base(tiny_base), device="cpu").unet.double()
    generator, step = torch.Generator().manual_seed(0), 1e-4
    for name in ALONE:
        weight = unet.get_submodule(name).weight
        kept, dW, losses = weight.data.clone(), update(unet.get_submodule(name), generator), []
        for sign in (1, -1):
            weight.data = kept + sign * step * dW.view_as(kept)
            with torch.no_grad():
                says = unet(noisy.double(), t, encoder_hidden_states=text.double()).sample
            losses.append(float((says - noise.double()).square().sum()))
        weight.data = kept
        slope = (losses[0] - losses[1]) / (2 * step)
        assert slope**2 == pytest.approx(predicted(found, name, dW), rel=1e-3) and abs(slope) > 1e-4, name


def test_layers_that_matter_more_by_the_moments_do_matter_more(tiny_base, found, questions):
    """Of many tokens the metric is an approximation: what updates of norm one do to the loss, from layer to layer."""
    unet = load(Base(tiny_base), device="cpu").unet.requires_grad_(True)
    names = [name.removeprefix("unet.") for name in found.weights]
    weights = [unet.get_submodule(name).weight for name in names]
    gradients = []
    for noisy, t, text, noise in questions:
        loss = (unet(noisy, t, encoder_hidden_states=text).sample - noise).square().sum()
        gradients.append([g.flatten(1).double() for g in torch.autograd.grad(loss, weights)])
    generator, measured, told = torch.Generator().manual_seed(0), [], []
    for i, name in enumerate(names):
        updates = [update(unet.get_submodule(name), generator) for _ in range(30)]
        measured.append(np.mean([float((of[i] * dW).sum()) ** 2 for of in gradients for dW in updates]))
        told.append(np.mean([predicted(found, name, dW) for dW in updates]))
    assert np.ptp(np.log10(measured)) > 3  # a thousand times more or less
    assert spearmanr(measured, told).statistic > 0.9
    assert spearmanr(measured, [found.weights[f"unet.{name}"] for name in names]).statistic > 0.85
    assert 0.5 < np.median(np.array(told) / measured) < 2  # and of the right size


def test_a_base_that_predicts_velocity_is_asked_for_it(tiny_bases, monkeypatch):
    name, squares = LAYERS[0], 0.0
    found = run(tiny_bases["sd-v"])
    unet = load(Base(tiny_bases["sd-v"]), device="cpu").unet
    parent, _, leaf = name.rpartition(".")
    watched = Watched(unet.get_submodule(name))
    setattr(unet.get_submodule(parent), leaf, watched)
    for noisy, t, text, v in asked(tiny_bases["sd-v"], monkeypatch):
        loss = (unet(noisy, t, encoder_hidden_states=text).sample - v).square().sum()
        (g,) = torch.autograd.grad(loss, watched.zero)
        squares += float(g.square().sum() / g.shape[-1])
    assert found.weights[f"unet.{name}"] == pytest.approx(squares / PROBE.samples, rel=1e-3)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' Euler scheduler
@pytest.mark.parametrize("kind", ["sd", "sd-v", "sdxl"])
def test_samples_are_those_of_stock_diffusers(tiny_bases, monkeypatch, kind):
    pipeline, samples, real = load(Base(tiny_bases[kind]), device="cpu"), [], room.own_samples
    monkeypatch.setattr(room, "own_samples", lambda *a: samples.append(real(*a)) or samples[0])
    measure(pipeline, TARGETS, PROBE, resolution=32, moments=False)
    (latents,) = samples
    for i, ours in enumerate(latents):
        prompt = PROBE.prompts[i % 2]
        stock = pipeline(
            prompt, num_inference_steps=2, guidance_scale=1, height=32, width=32, output_type="latent",
            latents=initial_noise((4, 16, 16), PROBE.seed, prompt, i)[None],
        ).images[0]  # fmt: skip
        torch.testing.assert_close(ours, stock, rtol=1e-3, atol=1e-3)


def test_timesteps_are_stratified_and_prompts_take_turns(questions, tiny_base):
    count, T = len(questions), load(Base(tiny_base), device="cpu").scheduler.config.num_train_timesteps
    times = [int(t) for _, t, _, _ in questions]
    assert sorted(t * count // T for t in times) == list(range(count)) and times != sorted(times)
    for i, (_, _, text, noise) in enumerate(questions):
        assert torch.equal(text, questions[i % 2][2])
        assert abs(float(noise.mean())) < 0.2 and 0.8 < float(noise.std()) < 1.2
    assert not torch.equal(questions[0][2], questions[1][2])
    first = torch.stack([noise for *_, noise in questions]).flatten(1)
    assert (torch.corrcoef(first) - torch.eye(count)).abs().max() < 0.2  # no noise twice


@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd-v", "sdxl-v"])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' Euler scheduler
def test_every_targeted_layer_has_a_weight(tiny_bases, kind):
    targets = [*TARGETS, "projection"]
    found = run(tiny_bases[kind], targets=targets, samples=2)
    names = stacked.targeted(load(Base(tiny_bases[kind]), device="cpu").unet, targets, UNet.targets)
    assert set(found.weights) == set(found.inputs) == {f"unet.{name}" for name in names}
    assert any("attn2.to_k" in name for name in names) and any("attn2.to_v" in name for name in names)
    for values in (found.weights, found.inputs):
        assert all(np.isfinite(w) and w > 0 for w in values.values())
    assert not found.sigma and not found.G  # nobody asked


def test_targets_choose_the_layers_and_change_no_other(tiny_base, found):
    some = run(tiny_base, targets=["attention"])
    assert 0 < len(some.weights) < len(found.weights) and all(".attn" in name for name in some.weights)
    assert all(found.weights[name] == w for name, w in some.weights.items())


@pytest.mark.parametrize("batch", [1, 4, 99])
def test_the_batch_changes_only_the_rounding(tiny_base, found, batch):
    other = run(tiny_base, moments=True, batch=batch)
    for kind in ("weights", "inputs"):
        one, two = getattr(found, kind), getattr(other, kind)
        assert one.keys() == two.keys() and all(two[name] == pytest.approx(w, rel=1e-3) for name, w in one.items())
    for kind in ("sigma", "G"):
        one, two = getattr(found, kind), getattr(other, kind)
        assert one.keys() == two.keys() == found.weights.keys()
        for name, X in one.items():
            torch.testing.assert_close(two[name], X, rtol=1e-3, atol=1e-3 * float(X.abs().max()))


def test_where_a_batch_does_not_fit_a_trial_finds_one_that_does(tiny_base, found, monkeypatch):
    """The trial takes the room of the moments, and adds nothing to them."""
    real, sizes = room.error_of, []

    def scarce(denoiser, objective, x, *rest):
        sizes.append(len(x))
        if len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(denoiser, objective, x, *rest)

    monkeypatch.setattr(room, "error_of", scarce)
    monkeypatch.setattr(room.room, "scarce", lambda device: True)
    other = run(tiny_base, moments=True, batch=8)
    assert sizes[0] > 3 and set(sizes[-2:]) <= {1, 2, 3}
    for name, w in found.weights.items():
        assert other.weights[name] == pytest.approx(w, rel=1e-3)
        torch.testing.assert_close(
            other.G[name], found.G[name], rtol=1e-3, atol=1e-3 * float(found.G[name].abs().max())
        )
        torch.testing.assert_close(
            other.sigma[name], found.sigma[name], rtol=1e-3, atol=1e-3 * float(found.sigma[name].abs().max())
        )


def test_another_seed_or_other_prompts_are_another_probe(tiny_base, found):
    for changes in ({"seed": 4}, {"prompts": ["a painting"]}, {"samples": 4}, {"num_inference_steps": 3}):
        other = run(tiny_base, **changes)
        assert all(other.weights[name] != w for name, w in found.weights.items())


def test_a_side_that_is_too_wide_has_no_second_moment(tiny_base, found, monkeypatch):
    monkeypatch.setattr(room, "WIDEST", 16)
    some = run(tiny_base, moments=True)
    for kind in ("sigma", "G"):
        whole, part = getattr(found, kind), getattr(some, kind)
        assert part.keys() == {name for name, X in whole.items() if len(X) <= 16} and 0 < len(part) < len(whole)
    assert some.weights == found.weights


def test_hooks_do_not_stay(tiny_base, monkeypatch):
    pipeline = load(Base(tiny_base), device="cpu")

    def left() -> int:
        return sum(len(module._forward_hooks) for module in pipeline.unet.modules())

    measure(pipeline, TARGETS, PROBE | {"samples": 1}, resolution=32, moments=False)
    assert left() == 0
    monkeypatch.setattr(room._Layer, "seen", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measure(pipeline, TARGETS, PROBE | {"samples": 1}, resolution=32, moments=False)
    assert left() == 0


def test_a_base_that_is_no_diffusion_is_refused(tiny_base):
    pipeline = load(Base(tiny_base), device="cpu")
    pipeline.scheduler.register_to_config(prediction_type="sample")
    with pytest.raises(TrainingError, match=r"base\.model: its scheduler"):
        measure(pipeline, TARGETS, PROBE, resolution=32, moments=False)


# --- files


def test_what_is_written_is_read_back_as_a_metric(tmp_path, found):
    path = tmp_path / "base.safetensors"
    write(path, found, {"base": "x"})
    metric = read_metric(path)
    assert metric.weights == dict(found.weights) and metric.moments == set(found.sigma)
    name = f"unet.{LAYERS[0]}"
    for root, X in zip(metric.roots(name), (found.sigma[name], found.G[name]), strict=True):
        np.testing.assert_allclose(root.astype(float) @ root, X, atol=1e-4 * float(X.abs().max()))
    write(path, Sensitivity(found.weights, found.inputs, {}, {}), {})  # without second moments
    metric = read_metric(path)
    assert metric.weights == dict(found.weights) and not metric.moments and metric.roots(name) is None


def keep(
    folder: Path, base: str, name: str = "out", asked: str = "{}", since: float = 0.0, **changes
) -> tuple[Path, tuple[int, str, float]]:
    output = folder / "study" / f"{name}.safetensors"
    at = Base(base)
    told = cached(
        output, folder / "cache", at, ["attention"], PROBE | {"samples": 2} | changes, resolution=32, moments=True,
        device="cpu", asked=asked, since=since,
    )  # fmt: skip
    return output, told


def test_the_same_probe_gives_the_same_bytes(tmp_path, tiny_base):
    one, told = keep(tmp_path / "a", tiny_base)
    other, _ = keep(tmp_path / "b", tiny_base)  # nothing is kept there yet
    assert one.read_bytes() == other.read_bytes()
    assert told[:2] == (2, "cpu") and told[2] > 0
    with safe_open(one, "pt") as file:
        header = json.loads(file.metadata()["lora_atlas"])
    assert header["probe"] == (PROBE | {"samples": 2}).plain() and "@sha256:" in header["base"]


def test_a_base_is_measured_once(tmp_path, tiny_base, monkeypatch):
    first, told = keep(tmp_path, tiny_base)

    def refused(*_, **__):
        raise AssertionError("measured")

    with monkeypatch.context() as patch:
        patch.setattr(room, "measure", refused)
        again, same = keep(tmp_path, tiny_base, "again")
        assert again.read_bytes() == first.read_bytes() and same == told  # what it cost then
        for changes in ({"seed": 9}, {"samples": 3}, {"prompts": ["a painting"]}):  # another probe
            with pytest.raises(AssertionError, match="measured"):
                keep(tmp_path, tiny_base, "other", **changes)
        # Another base at the same path, other versions, a forced job.
        for changes in ({"asked": '{"base": "another"}'}, {"since": time.time() + 1}):
            with pytest.raises(AssertionError, match="measured"):
                keep(tmp_path, tiny_base, "other", **changes)
        assert not (tmp_path / "study" / "other.safetensors").exists()
        # A run that forces it, and whose first variant has made it.
        keep(tmp_path, tiny_base, "again", since=time.time() - 600)


@pytest.mark.fault(
    "caches", "a kept metric, or its cost, that is cut, false or absent", "measured again, to the same bytes"
)
@pytest.mark.parametrize("damage", ["cut", "header", "tensors", "cost", "no cost", "not a number"])
def test_a_damaged_kept_file_is_measured_again(tmp_path, tiny_base, monkeypatch, damage):
    output, _ = keep(tmp_path, tiny_base)
    whole = output.read_bytes()
    (kept,), (cost,) = ((tmp_path / "cache").glob(f"*.{end}") for end in ("safetensors", "json"))
    if damage == "cut":
        kept.write_bytes(whole[: len(whole) // 2])
    elif damage == "header":
        kept.write_bytes(whole.replace(b"lora_atlas", b"lora_other"))
    elif damage == "tensors":
        kept.write_bytes(b"")
    elif damage == "no cost":
        cost.unlink()
    else:
        cost.write_text("{" if damage == "cost" else '{"device": "cpu", "seconds": "long"}')
    calls, real = [], room.measure
    monkeypatch.setattr(room, "measure", lambda *a, **k: calls.append(1) or real(*a, **k))
    again, told = keep(tmp_path, tiny_base, "again")
    assert calls == [1] and again.read_bytes() == whole == kept.read_bytes() and told[1] == "cpu"
    keep(tmp_path, tiny_base, "third")
    assert calls == [1]


@pytest.mark.fault("caches", "three studies ask for one metric at once", "one measures, the others wait")
def test_studies_that_ask_at_once_measure_once(tmp_path, tiny_base, monkeypatch, found):
    """Variants of a study run side by side: the first measures, and the others wait for it."""
    calls, second, start = [], threading.Event(), threading.Barrier(3)

    def slow(*_, **__) -> Sensitivity:
        calls.append(1)
        if len(calls) > 1:
            second.set()
        second.wait(1)  # time enough for the others to come in, too
        return found

    monkeypatch.setattr(room, "measure", slow)
    monkeypatch.setattr(room.bases, "load", lambda *_, **__: None)

    def ask(name: str) -> tuple[Path, tuple[int, str, float]]:
        start.wait(60)
        return keep(tmp_path, tiny_base, name)

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(ask, "abc"))
    assert calls == [1]
    assert len({output.read_bytes() for output, _ in results}) == len({told for _, told in results}) == 1


@pytest.mark.fault("caches", "the one that measures fails", "the next one measures")
def test_a_measuring_that_fails_keeps_nobody_out(tmp_path, tiny_base, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(room, "measure", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            keep(tmp_path, tiny_base)
    output, told = keep(tmp_path, tiny_base)
    assert told[2] > 0 and read_metric(output).weights
