"""What the mini models are pretrained on: random scenes in random styles, with captions made from what is seen.

No picture is in the style of an artist of the embedded study (``random_style`` never returns one), and no caption
names a style by more than its genre. The base sees contents only ("a painting of a harbour"): style must reach it
through a LoRA. CLIP, like its large sister, also reads of manner, light and colour.
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from .. import tensors
from ..pictures.synthetic import CONTENTS, paint, random_style
from ..seeds import derive_seed

MANNER = {
    "cloisonne": "flat colours and dark outlines",
    "points": "points of colour",
    "strokes": "short brush strokes",
    "chiaroscuro": "strong light and deep shadow",
    "shards": "sharp facets",
    "hatching": "hatched lines",
}
# Hue names at the centres of twelve 30° sectors.
HUES = ("red", "orange", "gold", "lime", "green", "jade", "teal", "azure", "blue", "violet", "magenta", "rose")


class CorpusError(ValueError):
    """A file of pictures to pretrain on cannot be used; the message names it."""


@dataclass(frozen=True)
class Corpus:
    """Pictures uint8 (N, size, size, 3); contents and full captions, one each; `noun`: what they are."""

    pictures: np.ndarray
    contents: tuple[str, ...]
    captions: tuple[str, ...]
    noun: str = "painting"


def content_caption(content: str, noun: str = "painting") -> str:
    """A caption by the content alone; of none, the generic one."""
    generic = f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
    return f"{generic} of a {content}" if content else generic


def describe(picture: np.ndarray, genre: str, content: str) -> str:
    """A caption of one picture: content, manner, light, and its two commonest hues."""
    rgb = picture.reshape(-1, 3).astype(np.float32) / 255
    high, low = rgb.max(1), rgb.min(1)
    chroma = high - low
    light = ("dark", "dim", "bright")[int(np.digitize(rgb.mean(), (0.36, 0.52)))]
    words = [f"a {light} painting of a {content}", f"in {MANNER[genre]}"]
    coloured = chroma > 0.12
    if coloured.sum() > 64:
        r, g, b = rgb[coloured].T
        c, top = chroma[coloured], high[coloured]
        hue = np.where(top == r, (g - b) / c % 6, np.where(top == g, (b - r) / c + 2, (r - g) / c + 4)) / 6
        counts = np.bincount((hue * 12 + 0.5).astype(int) % 12, weights=c, minlength=12)
        first, second = np.argsort(-counts, kind="stable")[:2]
        words.append(f"{HUES[first]} and {HUES[second]}" if counts[second] > 0 else HUES[first])
    return ", ".join(words)


def _paint_one(task: tuple[int, int, int]) -> tuple[np.ndarray, str, str]:
    seed, number, size = task
    style = random_style(derive_seed("pretraining style", seed, number))
    content = CONTENTS[number % len(CONTENTS)]
    picture = paint(style, content, derive_seed("pretraining picture", seed, number), size)
    return picture, content, describe(picture, style.genre, content)


def make(count: int, size: int, seed: int, workers: int) -> Corpus:
    """Paint `count` pictures of `size` pixels, one random style each."""
    tasks = [(seed, number, size) for number in range(count)]
    with ProcessPoolExecutor(workers) as pool:
        pictures, contents, captions = zip(*pool.map(_paint_one, tasks, chunksize=64), strict=True)
    return Corpus(np.stack(pictures), contents, captions)


def save(corpus: Corpus, path: str | Path) -> None:
    texts = {"contents": corpus.contents, "captions": corpus.captions, "noun": corpus.noun}
    tensors.write(path, {"pictures": corpus.pictures}, texts)


def load(path: str | Path) -> Corpus:
    """What `save` wrote; raises CorpusError naming a file that is absent or damaged."""
    try:
        with tensors.reading(path) as (texts, file):
            told = tuple(texts["contents"]), tuple(texts["captions"]), texts["noun"]
            return Corpus(file.get_tensor("pictures"), *told)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise CorpusError(f"{path}: not pictures to pretrain on, or damaged ({error}); {tensors.AGAIN}") from error
