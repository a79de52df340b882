"""The mini transformer: a few steps of its pretraining, and a folder that stock diffusers loads."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import StableDiffusion3Pipeline

from lora_atlas.diffusion import base as bases
from lora_atlas.diffusion.denoisers import denoiser_of
from lora_atlas.mini import base, corpus, flow
from lora_atlas.pictures.synthetic import CONTENTS
from lora_atlas.sections import Base

MINI = Path(__file__).parents[3] / "workflow/resources/mini"
STOCK = {"text_encoder_3": None, "tokenizer_3": None, "use_safetensors": True, "dtype": torch.float32}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two steps on eight pictures of noise."""
    folder = tmp_path_factory.mktemp("flow")
    pictures = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    contents = tuple(CONTENTS[i % len(CONTENTS)] for i in range(8))
    corpus.save(corpus.Corpus(pictures, contents, contents), folder / "corpus.safetensors")
    flow.build(
        folder / "corpus.safetensors", MINI / "base/vae", folder / "base", folder / "log.json", steps=2, seed=0,
        state=folder / "state.pt",
    )  # fmt: skip
    return folder


def test_it_is_small_and_what_it_learns_from_is_what_its_pipeline_gives(made):
    pipeline = StableDiffusion3Pipeline.from_pretrained(made / "base", **STOCK)
    assert pipeline.transformer.config.qk_norm == "rms_norm"
    words = pipeline.tokenizer
    model = flow.Denoiser(len(words), words.bos_token_id, words.eos_token_id, 16)
    assert 2e6 < sum(p.numel() for p in model.parameters()) < 4e6
    model.text, model.text_2 = pipeline.text_encoder, pipeline.text_encoder_2
    prompts = [corpus.content_caption(content) for content in (*CONTENTS, "")] + [""]
    kwargs = {"padding": "max_length", "max_length": base.MAX_TOKENS, "truncation": True, "return_tensors": "pt"}
    embeds, pooled = model.conditioning(words(prompts, **kwargs).input_ids)
    mine = bases.load(Base(str(made / "base")), device="cpu")
    text = denoiser_of(mine).encode_text(mine, prompts, (64, 64)).tensors
    torch.testing.assert_close(text["embeds"], embeds)
    torch.testing.assert_close(text["pooled"], pooled)


def test_the_size_of_its_loras_is_known_to_the_estimate(made):
    pipeline = bases.load(Base(str(made / "base")), device="cpu")
    denoiser = denoiser_of(pipeline)
    rates = yaml.safe_load((MINI.parent / "rates.yaml").read_text())["bases"]["workflow/resources/mini-flow/base"]
    for target in denoiser.targets:
        layers = [denoiser.module.get_submodule(name) for name in denoiser.layers([target])]
        assert sum(layer.in_features + layer.out_features for layer in layers) == rates[target]


def test_nothing_tells_where_it_was_made_and_the_card_counts_its_parameters(made):
    for path in (made / "base").rglob("*.json"):
        assert str(made) not in path.read_text()
    assert json.loads((made / "log.json").read_text())[-1]["step"] == 2 and not (made / "state.pt").exists()
    flow.write_card(made / "base", MINI / "base", made / "log.json", made, seed=0, each=1)
    card = (made / "README.md").read_text()
    pipeline = StableDiffusion3Pipeline.from_pretrained(made / "base", **STOCK)
    parts = [getattr(pipeline, part) for part in flow.PARTS]
    assert f"{sum(p.numel() for part in parts for p in part.state_dict().values()):,} parameters" in card
    assert (made / "samples.png").is_file()
