"""One gradient: inner products of LoRAs with the gradient of the base's loss, layer by layer."""

import numpy as np
import pytest
import torch

from lora_atlas.diffusion import attribution, stacked
from lora_atlas.diffusion.attribution import Question, contracted, gradients, matrix, of_files, products, samples
from lora_atlas.diffusion.base import load
from lora_atlas.diffusion.denoisers import denoiser_of
from lora_atlas.diffusion.objectives import objective_of
from lora_atlas.diffusion.tokens import error_of
from lora_atlas.loras.factors import HadamardUpdate, KroneckerUpdate, Update
from lora_atlas.loras.files import open_lora, write_lora
from lora_atlas.sections import Base
from lora_atlas.weights.stack import Stack, of_updates

ALL = ["attention", "feed_forward", "projection", "convolution"]
COUNT = 6
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"


class Case:
    """A tiny base, three pictures, and four LoRAs of several ranks in all of its layers."""

    def __init__(self, folder: str):
        self.pipeline = load(Base(folder), device="cpu")
        self.denoiser = denoiser_of(self.pipeline)
        self.objective = objective_of(self.pipeline.scheduler, "cpu")
        self.text = self.denoiser.encode_text(self.pipeline, ["a painting"], (32, 32))
        torch.manual_seed(3)
        self.latents = torch.randn(3, 4, 16, 16)
        self.names = stacked.targeted(self.denoiser.module, ALL, self.denoiser.targets)
        rng = np.random.default_rng(4)
        self.stacks: dict[str, Stack] = {}
        for name in self.names:
            weight = self.denoiser.module.get_submodule(name).weight
            out, width = len(weight), weight[0].numel()
            updates = [
                Update(name, *(rng.normal(size=shape).astype(np.float32) for shape in ((r, width), (out, r))))
                for r in (1, 3, 2, 1)
            ]
            self.stacks[name] = of_updates(updates)

    def question(self, batch: int = COUNT) -> Question:
        return Question(self.denoiser, self.objective, self.text, samples(COUNT, (4, 16, 16), 7), batch)

    def loras(self, name: str):
        """Two at a time, and of one layer the last is missing."""
        updates = self.stacks[name].updates(name)
        for members in ([0, 1], [2, 3] if name != self.names[1] else [2]):
            yield members, of_updates([updates[i] for i in members])

    def found(self, batch: int, latents: torch.Tensor | None = None, **options):
        latents = self.latents if latents is None else latents
        return products(self.question(batch), latents, self.names, self.loras, 4, **options)


@pytest.fixture(scope="module", params=["sd", "sd-v", "sdxl"])
def case(request, tiny_bases) -> Case:
    return Case(tiny_bases[request.param])


def test_products_are_those_of_the_gradient_of_the_weights_themselves(case):
    """Oracle: autograd in the weights, the loss of training, and dense updates."""
    found = case.found(batch=COUNT)
    module, asked = case.denoiser.module, samples(COUNT, (4, 16, 16), 7)
    weights = [module.get_submodule(name).weight.requires_grad_(True) for name in case.names]
    try:
        for picture, x in enumerate(case.latents):
            t = case.objective.times(asked.u, 256)
            noisy = case.objective.noisy(x.expand(COUNT, -1, -1, -1), asked.epsilon, t)
            guess = case.denoiser.predict(noisy, t, case.text.first(COUNT))
            value = case.objective.value(x.expand(COUNT, -1, -1, -1), asked.epsilon, t)
            loss = (guess - value).square().mean()
            assert found.losses[picture] == pytest.approx(loss.item(), rel=1e-5)
            gradients = torch.autograd.grad(loss, weights)
            for i, (name, g) in enumerate(zip(case.names, gradients, strict=True)):
                dense = np.stack([u.B @ u.A for u in case.stacks[name].updates(name)])
                expected = -(dense * g.flatten(1).numpy()).sum((1, 2))
                if name == case.names[1]:
                    expected[3] = 0
                np.testing.assert_allclose(
                    found.values[i, picture], expected, rtol=2e-3, atol=1e-5 * np.abs(dense).max(), err_msg=name
                )
    finally:
        for weight in weights:
            weight.requires_grad_(False)


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_how_samples_are_batched_changes_nothing(case, batch):
    whole, other = case.found(batch=COUNT), case.found(batch=batch)
    np.testing.assert_allclose(other.values, whole.values, rtol=2e-3, atol=1e-4 * np.abs(whole.values).max())
    np.testing.assert_allclose(other.losses, whole.losses, rtol=1e-5)


@pytest.mark.fault(
    "training", "a GPU whose memory does not hold a batch of the base's gradients", "a trial finds one that it holds"
)
def test_where_a_batch_does_not_fit_a_trial_finds_one_that_does(case, monkeypatch, capsys):
    """Half of a backward pass cannot be taken back: what was summed by then would stay."""
    whole = case.found(batch=COUNT)
    sizes = []

    def scarce(denoiser, objective, x, *rest):
        sizes.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return error_of(denoiser, objective, x, *rest)

    monkeypatch.setattr(attribution, "error_of", scarce)
    monkeypatch.setattr(attribution.room, "scarce", lambda device: True)
    found = case.found(batch=COUNT)
    np.testing.assert_allclose(found.values, whole.values, rtol=2e-3, atol=1e-4 * np.abs(whole.values).max())
    np.testing.assert_allclose(found.losses, whole.losses, rtol=1e-5)
    assert sizes[:3] == [COUNT, 3, 2] and set(sizes[3:]) == {2}
    assert capsys.readouterr().out.count("samples of pictures through the base, going on with 2 at a time") == 1
    # Once, however many parts the pictures come in.
    one = 4 * sum(int(np.prod(matrix(case.denoiser.module.get_submodule(name)))) for name in case.names)
    sizes.clear()
    found = case.found(batch=COUNT, memory=one)
    np.testing.assert_allclose(found.values, whole.values, rtol=2e-3, atol=1e-4 * np.abs(whole.values).max())
    assert sizes[:3] == [COUNT, 3, 2] and set(sizes[3:]) == {2}


@pytest.mark.parametrize("pictures_held", [0, 1, 2])
def test_what_is_held_changes_nothing(case, pictures_held):
    """Not one gradient, one at a time, two and then one: the same products."""
    held, _ = gradients(case.question(), case.latents, case.names)
    one = sum(g[0].numel() for g in held.values()) * 4
    shown = []
    whole, other = (
        case.found(batch=4),
        case.found(
            batch=4, memory=one * pictures_held or one - 1, seen=lambda part, of_part: shown.append((part, of_part))
        ),
    )
    np.testing.assert_allclose(other.values, whole.values, rtol=2e-3, atol=1e-4 * np.abs(whole.values).max())
    np.testing.assert_allclose(other.losses, whole.losses, rtol=1e-5)
    assert [part.stop - part.start for part, _ in shown] == {0: [], 1: [1, 1, 1], 2: [2, 1]}[pictures_held]
    for part, of_part in shown:
        for name in case.names:
            torch.testing.assert_close(of_part[name], held[name][part], rtol=2e-3, atol=1e-4)


def test_updates_of_any_kind_are_contracted():
    """LoHa and LoKr as the dense matrices that they are."""
    rng = np.random.default_rng(2)

    def plain(out, width, r):
        return Update("m", rng.normal(size=(r, width)).astype("f4"), rng.normal(size=(out, r)).astype("f4"))

    first, second, third = plain(6, 8, 2), plain(6, 8, 3), KroneckerUpdate("m", plain(2, 4, 2), plain(3, 2, 1))
    hadamard = HadamardUpdate("m", first, second)
    dense = [(first.B @ first.A) * (second.B @ second.A)]
    dense.append(np.kron(third.first.B @ third.first.A, third.second.B @ third.second.A))
    dense.append(first.B @ first.A)
    g = torch.randn(5, 6, 8)
    found = contracted(g, [hadamard, third, first])
    np.testing.assert_allclose(found, np.einsum("poi,noi->pn", g.numpy(), np.stack(dense)), rtol=1e-4, atol=1e-4)


def test_files_are_read_as_they_are_asked_for(tmp_path):
    """A layer that a file lacks is left out."""
    rng = np.random.default_rng(1)
    both = {
        f"unet.{name}": Update(
            f"unet.{name}", rng.normal(size=(2, 4)).astype("f4"), rng.normal(size=(3, 2)).astype("f4")
        )
        for name in (f"{BLOCK}.to_q", f"{BLOCK}.to_k")
    }
    write_lora(tmp_path / "a.safetensors", both, {})
    write_lora(tmp_path / "b.safetensors", dict(list(both.items())[:1]), {})
    files = [open_lora(tmp_path / f"{name}.safetensors") for name in "ab"]
    with of_files(files, "unet.") as loras:
        assert [list(members) for members, _ in loras(f"{BLOCK}.to_q")] == [[0, 1]]
        assert [list(members) for members, _ in loras(f"{BLOCK}.to_k")] == [[0]]
        assert list(loras("elsewhere")) == []
        ((_, group),) = loras(f"{BLOCK}.to_k")
        np.testing.assert_array_equal(group.A, both[f"unet.{BLOCK}.to_k"].A)


def test_a_picture_is_asked_by_itself(case):
    whole, alone = case.found(batch=4), case.found(batch=4, latents=case.latents[1:2])
    np.testing.assert_allclose(
        alone.values[:, 0], whole.values[:, 1], rtol=2e-3, atol=1e-4 * np.abs(whole.values).max()
    )


def test_nothing_stays_behind(case):
    case.found(batch=4)
    assert not any(module._forward_hooks for module in case.denoiser.module.modules())
    assert not any(p.requires_grad or p.grad is not None for p in case.denoiser.module.parameters())


def test_the_loss_falls_along_a_lora_by_what_its_product_says(case):
    """First order: ε of a LoRA changes a picture's loss by −ε times its product."""
    found, step = case.found(batch=COUNT), 1e-4
    asked, k = samples(COUNT, (4, 16, 16), 7), 1
    layers = stacked.stack(case.denoiser.module, case.names, 1, 3, step)
    try:
        updates = {n: case.stacks[n].updates(n)[k] for n in case.names}
        stacked.put(layers, 0, {n: (torch.from_numpy(u.A), torch.from_numpy(u.B)) for n, u in updates.items()})
        x, t = case.latents[:1].expand(COUNT, -1, -1, -1), case.objective.times(asked.u, 256)
        with torch.no_grad():
            guess = case.denoiser.predict(case.objective.noisy(x, asked.epsilon, t), t, case.text.first(COUNT))
        loss = (guess - case.objective.value(x, asked.epsilon, t)).square().mean().item()
    finally:
        stacked.unstack(case.denoiser.module, layers)
    expected = -step * found.values[:, 0, k].sum()
    assert loss - found.losses[0] == pytest.approx(expected, rel=0.1)
