"""The procedural painters: deterministic, each with a hand of its own, and not to be told by colour."""

import dataclasses
import os
import subprocess
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_atlas.features.extract import oklab
from lora_atlas.pictures.handling import HANDLING
from lora_atlas.pictures.scenes import ROLES, scene
from lora_atlas.pictures.synthetic import ARTISTS, CONTENTS, GENRES, PALETTES, paint, random_style

WORKFLOW = Path(__file__).parents[3] / "workflow"
FIRST = {genre: next(name for name, style in ARTISTS.items() if style.genre == genre) for genre in GENRES}
BY_GENRE = {genre: [style for style in ARTISTS.values() if style.genre == genre] for genre in GENRES}


# --- the artists


def test_six_genres_have_four_artists_each():
    assert Counter(style.genre for style in ARTISTS.values()) == dict.fromkeys(GENRES, 4) and len(GENRES) == 6
    assert len(CONTENTS) >= 4
    for name, style in ARTISTS.items():
        assert type(style.handling) is HANDLING[style.genre][0], name


def test_no_two_artists_have_one_hand():
    assert len(set(ARTISTS.values())) == len({style.handling for style in ARTISTS.values()}) == len(ARTISTS)


def test_genres_share_their_palettes_one_artist_each():
    assert len(set(PALETTES)) == 4 and {len(palette) for palette in PALETTES} == {ROLES}
    for genre, styles in BY_GENRE.items():
        assert sorted(style.palette for style in styles) == sorted(PALETTES), genre


def test_the_two_artists_of_a_small_study_share_palettes_across_genres():
    """With two artists a genre, no palette says which genre it is."""
    users = [{style.palette for style in styles[:2]} for styles in BY_GENRE.values()]
    for palette in set.union(*users):
        assert sum(palette in used for used in users) >= 2


def test_palettes_are_of_one_lightness():
    lightness = oklab(np.array(PALETTES, np.uint8))[..., 0].mean(1)
    assert np.ptp(lightness) < 0.05


# --- paint


@pytest.mark.parametrize("genre", GENRES)
@pytest.mark.parametrize("content", CONTENTS)
def test_every_content_is_painted_in_every_genre(genre, content):
    """A warning would be an error here."""
    for style in BY_GENRE[genre]:
        picture = paint(style, content, 1, 32)
        assert picture.shape == (32, 32, 3) and picture.dtype == np.uint8
        assert picture.std() > 8  # something is seen


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(sorted(ARTISTS)), st.sampled_from(CONTENTS), st.integers(0, 2**63 - 1), st.integers(32, 128))
def test_any_size_and_any_seed_are_painted_and_the_same_again(artist, content, seed, size):
    picture = paint(ARTISTS[artist], content, seed, size)
    assert picture.shape == (size, size, 3) and picture.dtype == np.uint8
    assert (picture == paint(ARTISTS[artist], content, seed, size)).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**63 - 1), st.sampled_from(CONTENTS))
def test_random_styles_paint_too(seed, content):
    picture = paint(random_style(seed), content, seed, 32)
    assert picture.shape == (32, 32, 3) and picture.dtype == np.uint8


def test_another_process_paints_the_same_bytes():
    code = (
        "import sys, hashlib; from lora_atlas.pictures.synthetic import ARTISTS, CONTENTS, paint, random_style\n"
        "d = hashlib.sha256(repr([random_style(i) for i in range(20)]).encode())\n"
        f"for a in {list(FIRST.values())!r}: d.update(paint(ARTISTS[a], CONTENTS[0], 7, 48).tobytes())\n"
        "print(d.hexdigest())"
    )
    environment = os.environ | {"PYTHONPATH": str(WORKFLOW), "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    ours = sha256(repr([random_style(i) for i in range(20)]).encode())
    for artist in FIRST.values():
        ours.update(paint(ARTISTS[artist], CONTENTS[0], 7, 48).tobytes())
    assert done.stdout.strip() == ours.hexdigest(), done.stderr


def test_painting_leaves_the_global_generator_alone():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    paint(ARTISTS["maren"], "harbour", 0, 32)
    random_style(0)
    assert (np.random.get_state()[1] == before).all()


@pytest.mark.parametrize("artist", FIRST.values())
def test_an_artists_pictures_differ_by_seed_and_by_content(artist):
    pictures = [paint(ARTISTS[artist], content, seed, 32) for content in CONTENTS for seed in range(4)]
    for i, one in enumerate(pictures):
        for other in pictures[:i]:
            assert np.abs(one.astype(float) - other).mean() > 4


def test_two_hands_paint_one_scene_differently():
    """The scene is drawn before the style is looked at."""
    for content in CONTENTS:
        seen = [paint(style, content, 3, 48).astype(float) for style in ARTISTS.values()]
        for i, one in enumerate(seen):
            assert all(np.abs(one - other).mean() > 2 for other in seen[:i])


def test_a_larger_picture_is_the_same_picture():
    """Handling is in pixels of a 64-pixel picture whatever the size: painted larger and shrunk, it looks alike."""
    for artist in ("maren", "caspar"):  # without scattered marks, which are drawn one by one
        small = paint(ARTISTS[artist], "portrait", 5, 32).astype(float)
        large = paint(ARTISTS[artist], "portrait", 5, 64).astype(float).reshape(32, 2, 32, 2, 3).mean((1, 3))
        other = paint(ARTISTS[artist], "portrait", 6, 32).astype(float)
        assert np.abs(small - large).mean() < 0.3 * np.abs(small - other).mean()


def test_an_unknown_content_is_named():
    with pytest.raises(KeyError, match="seascape"):
        paint(ARTISTS["maren"], "seascape", 0)


def test_a_scene_has_known_roles_and_finite_light():
    for content in CONTENTS:
        seen = scene(content, 48, np.random.default_rng(0))
        assert seen.region.shape == seen.light.shape == seen.angle.shape == (48, 48)
        assert seen.region.max() < ROLES and len(np.unique(seen.region)) >= 3
        assert np.isfinite(seen.light).all() and np.isfinite(seen.angle).all()


# --- random styles: what the mini models learn from


def test_a_random_style_is_never_an_artists():
    styles = [random_style(seed) for seed in range(600)]
    assert len(set(styles)) == len(styles)
    palettes, hands = set(PALETTES), {style.handling for style in ARTISTS.values()}
    assert not any(style.palette in palettes or style.handling in hands for style in styles)


def test_random_styles_reach_around_every_artist():
    """No artist's handling lies outside what the mini models have seen, and none sits on all of its edges."""
    styles = [random_style(seed) for seed in range(1200)]
    assert min(Counter(style.genre for style in styles).values()) > 1200 / 6 * 0.7
    for name, artist in ARTISTS.items():
        near = [style.handling for style in styles if style.genre == artist.genre]
        for field in dataclasses.fields(artist.handling):
            drawn, value = [getattr(hand, field.name) for hand in near], getattr(artist.handling, field.name)
            slack = 0.05 * (max(drawn) - min(drawn))
            assert min(drawn) - slack <= value <= max(drawn) + slack, (name, field.name)


# --- colour tells little, handling much


def mean_colour(picture: np.ndarray) -> np.ndarray:
    return oklab(picture).mean((0, 1))


def handling(picture: np.ndarray) -> np.ndarray:
    """Grey only: where gradients point, how energy is spread over frequencies, how strong and how sparse edges are."""
    grey = oklab(picture)[..., 0]
    grey = grey - grey.mean()
    side = len(grey)
    dy, dx = np.gradient(grey)
    strength = np.hypot(dx, dy)
    turns = np.histogram(np.arctan2(dy, dx) % np.pi, 8, (0, np.pi), weights=strength)[0]
    window = np.hanning(side)
    power = np.abs(np.fft.fft2(grey * window * window[:, None])) ** 2
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    edges = np.array([1 / 64, 1 / 24, 1 / 12, 1 / 8, 1 / 6, 1 / 4, 1])
    bands = np.histogram(frequency, edges, weights=power)[0]
    sparse = (strength**4).mean() / (strength**2).mean() ** 2
    return np.concatenate([3 * turns / turns.sum(), np.log(bands / bands.sum()), np.log([strength.mean(), sparse])])


@pytest.fixture(scope="module")
def gallery() -> np.ndarray:
    """Twelve pictures of each artist, uint8 (artists, 12, 64, 64, 3)."""
    return np.stack(
        [
            [paint(style, CONTENTS[n % len(CONTENTS)], 1000 * number + n, 64) for n in range(12)]
            for number, style in enumerate(ARTISTS.values())
        ]
    )


def accuracy(describe, pictures: np.ndarray) -> float:
    """Of nearest-mean classification of artists: six pictures make the mean, six are asked."""
    vectors = np.stack([[describe(picture) for picture in artist] for artist in pictures])
    vectors = vectors / vectors[:, :6].std((0, 1))
    distance = np.linalg.norm(vectors[:, 6:, None] - vectors[:, :6].mean(1), axis=-1)
    return float((distance.argmin(-1) == np.arange(len(pictures))[:, None]).mean())


def test_artists_are_told_by_handling_and_hardly_by_mean_colour(gallery):
    colour, hand = accuracy(mean_colour, gallery), accuracy(handling, gallery)
    assert colour < 0.30  # measured: 0.15; chance is 1 in 24
    assert hand > 0.60  # measured: 0.78
    assert hand > 2.5 * colour


def test_genres_are_of_one_brightness_but_for_lamps_in_the_dark(gallery):
    """`paint` undoes what handling does to the mean, within bounds that only chiaroscuro reaches."""
    lightness = np.stack([[mean_colour(picture)[0] for picture in artist] for artist in gallery])
    genres = np.array([style.genre for style in ARTISTS.values()])
    parts = [lightness[genres == genre] for genre in GENRES if genre != "chiaroscuro"]
    assert np.ptp([part.mean() for part in parts]) < np.mean([part.std() for part in parts])
