"""Small pictures of a page: each once, as WebP, and together no larger than what the page may weigh."""

import base64
import io
from pathlib import Path

from PIL import Image

from ..pictures.decode import MAX_BYTES, PictureError, crop_square, decode

SIDES = (112, 96, 80, 64, 48, 32)  # pixels; the first at which all are within their budget
QUALITY = 78
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


class Thumbnails:
    """Pictures that a page shows. They are handed in as encoded files of whatever origin, and named by a key."""

    def __init__(self, budget: int):
        """`budget`: bytes of all of them together, as they stand in the page."""
        self.budget = budget
        self._small: list[bytes] = []
        self._places: dict[str, int | None] = {}

    def add(self, key: str, data: bytes) -> int | None:
        """The number of a picture; None of what is no picture. A key that is known is looked at no more."""
        if key not in self._places:
            try:
                image = decode(data, min_side=1)
                small = crop_square(image, min(SIDES[0], *image.size))
            except PictureError:
                self._places[key] = None
            else:
                self._places[key] = len(self._small)
                self._small.append(_webp(small))
        return self._places[key]

    def number(self, key: str) -> int | None:
        """The number of a picture that was handed in; None of any other."""
        return self._places.get(key)

    def uris(self) -> list[str]:
        """Data URIs, by number."""
        found = self._small
        for side in SIDES[1:]:
            if sum(len(data) + 24 for data in found) * 4 / 3 <= self.budget:
                break
            found = [_smaller(data, side) for data in self._small]
        return ["data:image/webp;base64," + base64.b64encode(data).decode() for data in found]


def beside(file: str | Path) -> bytes | None:
    """The preview that lies beside a LoRA file, as galleries and trainers write it: NAME.png, NAME.preview.png and
    the like; of a PEFT folder also within it. None where there is none, or none that can be read."""
    path = Path(file)
    stem = path if path.is_dir() else path.with_suffix("")
    names = [stem.with_name(stem.name + middle + ending) for middle in ("", ".preview") for ending in ENDINGS]
    if path.is_dir():
        names += [path / f"{name}{ending}" for name in ("preview", "sample") for ending in ENDINGS]
    for name in names:
        try:
            if name.is_file() and 0 < name.stat().st_size <= MAX_BYTES:
                return name.read_bytes()
        except (OSError, ValueError):
            continue
    return None


def _webp(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, method=4)
    return buffer.getvalue()


def _smaller(data: bytes, side: int) -> bytes:
    image = _opened(data)
    return data if max(image.size) <= side else _webp(image.resize((side, side), Image.Resampling.LANCZOS))


def _opened(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=("WEBP",)) as image:
        image.load()
        return image.convert("RGB")
