"""The mini models: what is committed loads through the libraries' own code and serves; what made it is sound."""

import colorsys
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from safetensors.torch import load_file

from lora_atlas.mini import autoencoder, base, corpus, dino, loop
from lora_atlas.mini.card import study_pictures
from lora_atlas.pictures.synthetic import ARTISTS, CONTENTS, GENRES, random_style

MINI = Path(__file__).parents[3] / "workflow/resources/mini"


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import StableDiffusionPipeline

    loaded = StableDiffusionPipeline.from_pretrained(MINI / "base", use_safetensors=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def painted() -> dict[str, np.ndarray]:
    """Five pictures of each study artist, one a content."""
    return study_pictures(each=5)


@pytest.fixture(scope="module")
def images(painted) -> list[Image.Image]:
    return [Image.fromarray(picture) for pictures in painted.values() for picture in pictures]


# --- what is committed


def test_all_of_it_is_small():
    files = [path for path in MINI.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 20 * 2**20
    assert max(path.stat().st_size for path in files) <= 10 * 2**20  # of a file, in a git repository


def test_weights_are_safetensors_and_nothing_can_run_code():
    kinds = {path.suffix for path in MINI.rglob("*") if path.is_file()}
    assert kinds == {".safetensors", ".json", ".md", ".png", ".yaml"}  # about.yaml: what the models learnt from
    for path in MINI.rglob("*.safetensors"):
        assert all(torch.isfinite(tensor.float()).all() for tensor in load_file(path).values()), path.name


def test_no_configuration_tells_where_it_was_made():
    for path in MINI.rglob("*.json"):
        assert "_name_or_path" not in path.read_text(), path


def test_the_card_counts_the_parameters_of_what_lies_beside_it():
    card = (MINI / "README.md").read_text()

    def count(*files: str) -> str:
        return f"{sum(t.numel() for file in files for t in load_file(MINI / file).values()):,}"

    unet, text = "base/unet/diffusion_pytorch_model.safetensors", "base/text_encoder/model.safetensors"
    for name, files in {
        "autoencoder": ["base/vae/diffusion_pytorch_model.safetensors"],
        "base": [unet, text],
        "clip": ["clip/open_clip_model.safetensors"],
        "dino": ["dino/model.safetensors"],
    }.items():
        (row,) = [line for line in card.splitlines() if line.startswith(f"| {name} |")]
        assert f"| {count(*files)} |" in row


# --- the base


def sample(pipeline, prompt: str, seed: int = 0) -> np.ndarray:
    return pipeline(
        prompt,
        num_inference_steps=2,
        guidance_scale=3.0,
        height=64,
        width=64,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    ).images


def test_the_base_samples_through_diffusers(pipeline):
    first = sample(pipeline, "a painting of a harbour")
    assert first.shape == (1, 64, 64, 3) and np.isfinite(first).all() and first.std() > 0.03
    assert (first == sample(pipeline, "a painting of a harbour")).all()
    assert np.abs(first - sample(pipeline, "a painting of a portrait")).mean() > 0.01  # it reads the prompt
    assert np.abs(first - sample(pipeline, "a painting of a harbour", seed=1)).mean() > 0.03


def test_the_base_predicts_noise_better_than_nothing_would(pipeline, painted):
    """Unit noise guessed as zero has an error of one; at every level the UNet knows more."""
    pictures = np.concatenate([pictures[:1] for pictures in painted.values()])
    latents = autoencoder.encode(pipeline.vae, pictures) * pipeline.vae.config.scaling_factor
    assert 0.5 < latents.std() < 2
    text = pipeline.encode_prompt(corpus.content_caption(""), "cpu", 1, False)[0].expand(len(latents), -1, -1)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    errors = []
    for level in (100, 500, 900):
        t = torch.full((len(latents),), level)
        with torch.no_grad():
            guess = pipeline.unet(pipeline.scheduler.add_noise(latents, noise, t), t, text).sample
        errors.append((guess - noise).square().mean().item())
    assert errors[0] < 0.9 and errors[1] < 0.4 and errors[2] < 0.15


def test_the_autoencoder_keeps_what_artists_do(pipeline, painted):
    quality = {artist: autoencoder.psnr(pipeline.vae, pictures) for artist, pictures in painted.items()}
    assert set(quality) == set(ARTISTS) and all(len(values) >= 2 for values in quality.values())
    assert np.mean(list(quality.values())) >= 24
    assert min(values.mean() for values in quality.values()) >= 18


def test_psnr_is_that_of_rounded_pictures():
    class Off(torch.nn.Module):
        """Gives pictures back, each value wrong by 4.4: four, when rounded."""

        def encode(self, x):
            return type("", (), {"latents": x})

        def decode(self, z):
            return type("", (), {"sample": z + 4.4 / 127.5})

    pictures = np.random.default_rng(0).integers(0, 250, (70, 8, 8, 3), dtype=np.uint8)
    found = autoencoder.psnr(Off(), pictures)
    assert found.shape == (70,)  # more than one batch
    np.testing.assert_allclose(found, 10 * np.log10(255**2 / 16), rtol=1e-6)


# --- the tokenizer


def test_the_committed_tokenizer_is_the_one_that_the_code_makes(pipeline):
    ours = base.tokenizer(CONTENTS)
    assert pipeline.tokenizer.get_vocab() == ours.get_vocab()
    assert pipeline.text_encoder.config.vocab_size == len(ours)
    texts = [corpus.content_caption(content) for content in CONTENTS] + [corpus.content_caption(""), "xyzzy, 北斎 & é"]
    assert [pipeline.tokenizer(text).input_ids for text in texts] == [ours(text).input_ids for text in texts]


def test_captions_of_the_base_fit_and_no_text_is_unknown(pipeline):
    words = pipeline.tokenizer
    for content in CONTENTS:
        ids = words(corpus.content_caption(content)).input_ids
        assert len(ids) <= base.MAX_TOKENS
        assert ids[0] == words.bos_token_id and ids[-1] == words.eos_token_id and words.eos_token_id not in ids[1:-1]
        assert words.decode(ids[1:-1]).strip() == corpus.content_caption(content)
    assert words.tokenize(corpus.content_caption("")) == ["a</w>", "painting</w>"]
    assert words.tokenize("xq") == ["x", "q</w>"]
    assert words.unk_token_id not in words("北斎 ÿ\x00", add_special_tokens=False).input_ids


def test_contents_are_far_apart_and_the_generic_caption_says_as_little_as_none(pipeline):
    texts = [corpus.content_caption(content) for content in CONTENTS] + [corpus.content_caption(""), ""]
    embeds = pipeline.encode_prompt(texts, "cpu", 1, False)[0].flatten(1)
    distance = torch.cdist(embeds, embeds) + torch.eye(len(texts)) * 1e9
    assert distance[:-1, :-1].min() > 10 * distance[-2, -1]


# --- the eyes


def test_the_mini_clip_loads_through_open_clip_and_reads(images):
    import open_clip

    name = f"local-dir:{MINI / 'clip'}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    stored = load_file(MINI / "clip/open_clip_model.safetensors")
    assert all(torch.equal(value, stored[key].float()) for key, value in model.state_dict().items())
    words = open_clip.get_tokenizer(name)
    with torch.no_grad():
        text = F.normalize(model.encode_text(words([f"a dim painting of a {content}" for content in CONTENTS])), dim=-1)
        seen = F.normalize(model.eval().encode_image(torch.stack([preprocess(image) for image in images])), dim=-1)
    right = (seen @ text.T).argmax(1) == torch.arange(len(images)) % len(CONTENTS)
    assert right.float().mean() > 2 / len(CONTENTS)  # twice chance; measured: three times


def test_the_mini_dino_loads_through_timm_and_sees_genres(images):
    import timm

    model = timm.create_model(f"local-dir:{MINI / 'dino'}", pretrained=True, num_classes=0).eval()
    stored = load_file(MINI / "dino/model.safetensors")
    assert all(torch.equal(value, stored[key]) for key, value in model.state_dict().items())
    preprocess = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model), is_training=False)
    with torch.no_grad():
        seen = F.normalize(model(torch.stack([preprocess(image) for image in images])), dim=-1)
    near = (seen @ seen.T).fill_diagonal_(-1).argmax(1)
    genres = np.repeat([style.genre for style in ARTISTS.values()], len(images) // len(ARTISTS))
    assert (genres[near] == genres).mean() > 2.5 / len(GENRES)  # measured: 3.4 times chance; random weights: 2.2


# --- the corpus


def flat(*parts: tuple[tuple[int, int, int], float], side: int = 32) -> np.ndarray:
    """A picture of bands of colour, each a share of it."""
    rows = [np.full((round(side * share), side, 3), colour, np.uint8) for colour, share in parts]
    return np.concatenate(rows)


@pytest.mark.parametrize("number", range(12))
def test_hues_are_named_at_the_centres_of_their_sectors(number):
    def rgb(hue: float) -> tuple[int, int, int]:
        return tuple(round(255 * v) for v in colorsys.hsv_to_rgb(hue % 1, 0.8, 0.9))

    first, second = number, (number + 5) % 12
    for shift in (-0.4, 0, 0.4):  # of a sector
        picture = flat((rgb((first + shift) / 12), 0.625), (rgb((second + shift) / 12), 0.375))
        caption = corpus.describe(picture, "points", "town")
        assert caption.endswith(f", {corpus.HUES[first]} and {corpus.HUES[second]}")


def test_a_grey_picture_has_a_light_and_no_hue():
    lights = [corpus.describe(flat(((v, v, v), 1.0)), "hatching", "harbour") for v in (60, 110, 200)]
    assert lights == [f"a {word} painting of a harbour, in hatched lines" for word in ("dark", "dim", "bright")]


def test_every_genre_has_a_manner_and_none_names_an_artist():
    assert set(corpus.MANNER) == set(GENRES) and len(set(corpus.MANNER.values())) == len(GENRES)
    assert len(corpus.HUES) == len(set(corpus.HUES)) == 12


@pytest.fixture(scope="module")
def made() -> corpus.Corpus:
    return corpus.make(20, 32, 0, 1)


def test_the_corpus_has_every_content_and_captions_of_what_is_seen(made):
    assert made.pictures.shape == (20, 32, 32, 3) and made.pictures.dtype == np.uint8
    assert {content: made.contents.count(content) for content in CONTENTS} == dict.fromkeys(CONTENTS, 4)
    for picture, content, caption in zip(made.pictures, made.contents, made.captions, strict=True):
        assert f" painting of a {content}, in " in caption
        (genre,) = [genre for genre, manner in corpus.MANNER.items() if f", in {manner}" in caption]
        assert caption == corpus.describe(picture, genre, content)
        assert not set(caption.replace(",", "").split()) & set(ARTISTS)


def test_the_corpus_is_the_same_whatever_its_size(made):
    fewer = corpus.make(7, 32, 0, 2)
    assert (fewer.pictures == made.pictures[:7]).all() and fewer.captions == made.captions[:7]
    assert (corpus.make(7, 32, 1, 1).pictures != fewer.pictures).any()


def test_the_corpus_survives_its_file(made, tmp_path):
    corpus.save(made, tmp_path / "corpus.safetensors")
    read = corpus.load(tmp_path / "corpus.safetensors")
    assert (read.pictures == made.pictures).all()
    assert (read.contents, read.captions) == (made.contents, made.captions)


def test_captions_of_a_content_do_not_depend_on_style():
    """Style must reach the base through a LoRA."""
    captions = {corpus.content_caption(content) for content in CONTENTS}
    words = {word for caption in captions for word in caption.split()}
    manner = {word for text in corpus.MANNER.values() for word in text.split()} - {"of", "in", "and", "a"}
    assert len(captions) == len(CONTENTS) and not words & (manner | set(corpus.HUES) | set(ARTISTS))
    assert random_style(0) not in ARTISTS.values()


# --- the loop


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.GELU(), torch.nn.Linear(8, 1))


def fitted(state: Path, die_after: int | None = None, **changes):
    """Fit a small network to a sum; optionally be killed within a step."""
    module, calls = network(), [0]

    def loss(mean: torch.nn.Module, generator: torch.Generator) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == die_after:
            raise KeyboardInterrupt
        x = torch.randn(32, 4, generator=generator)
        with torch.no_grad():
            assert not mean.training and not any(p.requires_grad for p in mean.parameters())
            mean(x)
        return (module(x) - x.sum(1, keepdim=True)).square().mean()

    recipe = {"steps": 40, "learning_rate": 1e-2, "seed": 1, "every": 7, "average": 0.9} | changes
    mean, log = loop.fit("sum", module, loss, state=state, **recipe)
    return mean.state_dict(), log, calls[0]


@pytest.mark.fault("training", "the training of a base is stopped at any step", "goes on to the same weights")
@pytest.mark.parametrize("die_after", [3, 8, 30])
def test_a_killed_training_goes_on_to_the_same_weights(tmp_path, die_after):
    whole, log, _ = fitted(tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "killed.pt", die_after)
    resumed, again, calls = fitted(tmp_path / "killed.pt")
    assert calls == 40 - (die_after - 1) // 7 * 7  # from the last checkpoint, and not from the start
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert [(row["step"], row["loss"]) for row in log] == [(row["step"], row["loss"]) for row in again]


def test_training_learns_and_logs_what_it_did(tmp_path):
    _, log, calls = fitted(tmp_path / "state.pt", steps=120)
    assert calls == 120 and [row["step"] for row in log] == [*range(7, 120, 7), 120]
    assert log[-1]["loss"] < 0.3 * log[0]["loss"]
    seconds = [row["seconds"] for row in log]
    assert seconds == sorted(seconds) and seconds[0] > 0
    loop.write_log(tmp_path / "log.json", log)
    assert json.loads((tmp_path / "log.json").read_text()) == log


def test_the_moving_average_forgets_its_start(tmp_path):
    """Weights that the loss drives to a constant: after few steps the average is near them, not near the first."""
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(module.weight, 5.0)

    def loss(mean, generator):
        return (module.weight - 1).abs().sum()

    mean, _ = loop.fit(
        "one", module, loss, steps=200, learning_rate=0.1, seed=0, state=tmp_path / "state.pt", weight_decay=0
    )
    assert abs(mean.weight.item() - 1) < 1  # with a plain average of 0.999 it would still be above 4


def test_seeds_of_stages_differ_and_are_small():
    seeds = {loop.stage_seed(seed, stage) for seed in (0, 1) for stage in ("autoencoder", "base", "clip", "dino")}
    assert len(seeds) == 8 and max(seeds) < 2**31


# --- self-distillation


def cosines(n: int, k: int, seed: int) -> torch.Tensor:
    """Cosines of n vectors that crowd in one direction to k prototypes: a plain softmax would use few of them."""
    generator = torch.Generator().manual_seed(seed)
    x = F.normalize(torch.randn(n, 16, generator=generator) + 1, dim=-1)
    return x @ F.normalize(torch.randn(k, 16, generator=generator), dim=-1).T


@pytest.mark.parametrize("seed", range(3))
def test_assignments_use_all_prototypes_alike(seed):
    scores = cosines(64, 32, seed)
    used, plain = dino.spread(scores).sum(0) / 2, torch.softmax(scores / 0.05, -1).sum(0) / 2
    assert used.min() > 0.5 and used.max() < 1.5
    assert plain.min() < 0.05 and plain.max() > 4
    longer = dino.spread(scores, rounds=60)
    torch.testing.assert_close(longer.sum(0), torch.full((32,), 2.0), rtol=1e-4, atol=0)


@settings(deadline=None, max_examples=60)
@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.floats(-1, 1, width=32)))
def test_every_assignment_is_a_distribution(scores):
    Q = dino.spread(torch.from_numpy(scores))
    assert (Q >= 0).all()
    torch.testing.assert_close(Q.sum(1), torch.ones(len(scores)))


def test_assignments_prefer_the_nearest_prototype():
    torch.testing.assert_close(dino.spread(torch.eye(4)), torch.eye(4), rtol=0, atol=1e-6)


def test_crops_are_seeded_normalised_and_of_the_side_that_is_asked():
    x = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def crop(seed: int) -> torch.Tensor:
        return dino.crops(x, 16, (0.1, 0.4), torch.Generator().manual_seed(seed))

    assert crop(0).shape == (5, 3, 16, 16)
    assert torch.equal(crop(0), crop(0)) and not torch.equal(crop(0), crop(1))
    pixels = crop(0) * torch.tensor(dino.STD).view(3, 1, 1) + torch.tensor(dino.MEAN).view(3, 1, 1)
    assert pixels.min() > -1e-6 and pixels.max() < 1 + 1e-6
