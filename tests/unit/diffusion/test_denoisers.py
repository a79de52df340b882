"""Architectures and objectives: a registry each, and nothing else asks which it is."""

import re
from types import SimpleNamespace

import pytest
import torch

from lora_atlas.diffusion import base, denoisers, objectives
from lora_atlas.diffusion.base import load
from lora_atlas.diffusion.denoisers import DENOISERS, Conditioning, denoiser_of
from lora_atlas.diffusion.errors import BaseModelError
from lora_atlas.diffusion.objectives.noise import Noise
from lora_atlas.diffusion.targets import TARGETS
from lora_atlas.hub import pipelines
from lora_atlas.loras.files import read_lora
from lora_atlas.sections import Base


@pytest.mark.parametrize("kind", DENOISERS)
def test_every_architecture_has_patterns_of_known_targets(kind):
    assert set(kind.targets) <= set(TARGETS)
    assert all(re.compile(pattern) for pattern in kind.targets.values())


def test_an_architecture_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(BaseModelError, match=r"base\.model: a SimpleNamespace.*UNet \(StableDiffusionPipeline.*ZImage"):
        denoiser_of(SimpleNamespace(transformer=torch.nn.Linear(1, 1)))


def test_what_the_configuration_knows_of_pipelines_is_what_can_be_loaded():
    classes = [name for kind in DENOISERS for name in getattr(kind, "classes", ())]
    assert sorted(classes) == sorted(pipelines.TRANSFORMERS)
    assert denoisers.UNet.fits({"unet": list(pipelines.UNET)})


@pytest.mark.parametrize(("kind", "names"), [("sd", {"embeds"}), ("sdxl", {"embeds", "pooled", "time_ids"})])
def test_prompts_are_taken_and_joined_in_all_their_tensors(tiny_bases, kind, names):
    pipeline = load(Base(tiny_bases[kind]), device="cpu")
    denoiser = denoiser_of(pipeline)
    text = denoiser.encode_text(pipeline, ["landscape", "portrait"], (32, 32))
    both = text.join(denoiser.unconditional(pipeline, (32, 32)))
    assert set(both.tensors) == names
    for name, tensor in both.tensors.items():
        assert len(tensor) == 3
        torch.testing.assert_close(text.take(torch.tensor([1, 1])).tensors[name], tensor[[1, 1]])
        torch.testing.assert_close(text.first(4).tensors[name], tensor[[0] * 4])


@pytest.mark.slow
def test_a_second_architecture_is_a_class_in_the_registry(tmp_path, tiny_base, material, make, monkeypatch):
    """The same network under another component, with text of other names and layers of other patterns, and an objective
    of continuous times: training writes files under its prefix and says nothing of a UNet."""

    class Other(denoisers.UNet):
        component = "transformer"
        targets = {"feed_forward": r"\.ff\.net\.2$"}  # noqa: RUF012

        def encode_text(self, pipeline, prompts, size):
            return Conditioning({"words": super().encode_text(pipeline, prompts, size).tensors["embeds"]})

        def predict(self, x, t, text):
            return super().predict(x, t * 999, Conditioning({"embeds": text.tensors["words"]}))

    class Flow(Noise):
        @classmethod
        def of(cls, scheduler, device, min_snr_gamma, density, shift):
            return cls(scheduler.alphas_cumprod, "flow", None)

        def times(self, u, tokens):
            return u

        def noisy(self, x, epsilon, t):
            t = t.view(-1, 1, 1, 1)
            return (1 - t) * x + t * epsilon

        def value(self, x, epsilon, t):
            return epsilon - x

    monkeypatch.setattr(denoisers, "DENOISERS", (Other,))
    monkeypatch.setattr(base, "DENOISERS", (Other,))
    monkeypatch.setattr(objectives, "OBJECTIVES", (Flow,))
    with pytest.raises(ValueError, match=r"attention.*of UNet2DConditionModel there are \['feed_forward'\]"):
        make(tmp_path / "wrong", tiny_base, material, ["ada/00"], targets=["attention"])
    made = make(tmp_path / "right", tiny_base, material, ["ada/00"], targets=["feed_forward"])
    found = read_lora(made["ada/00"]).updates
    assert found and all(re.fullmatch(r"transformer\..*\.ff\.net\.2", name) for name in found)
    assert any(abs(update.B).max() > 0 for update in found.values())
