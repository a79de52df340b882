"""Bytes of unknown origin → one canonical picture, or a typed refusal.

A canonical picture is an RGB image of 8 bits a channel in sRGB, upright, opaque, without metadata. Decisions:

- Whole pictures only. ``verify()`` accepts half a JPEG, so every pixel is decoded; ``LOAD_TRUNCATED_IMAGES``,
  which paints the missing half grey, is banned, and decoding stops when another library has switched it on.
- Raster formats by name. Pillow would otherwise hand a PostScript file called .jpg to Ghostscript.
- Caps before pixels: on the side as well as on the area, because Pillow opens 80,000,000 × 1 without a word.
  The area cap lies below the one at which Pillow merely warns, so that warning never decides anything.
- One frame. Animations and multi-page files are refused: which page is the artist's is not ours to guess. The
  second image of a phone's JPEG (MPO) is a preview or a gain map, and is ignored.
- Transparency is laid on white, the paper that cut-outs and drawings are published on. Mid grey would add a
  colour that nobody chose. Dropping the alpha channel would reveal colours that nobody was meant to see.
- Colour goes through the embedded ICC profile (relative colorimetric, black point compensated); a profile that
  does not fit its picture is ignored, as browsers do. PNG's gAMA, cHRM and cICP chunks are ignored.
- 16-bit grey is scaled by its full range (Pillow clips 40000 to 255), float grey by 0…1. 32-bit integers, and
  floats beyond 0…1, have no agreed white: refused.
"""

import contextlib
import io
import struct
import warnings

import numpy as np
from PIL import Image, ImageCms, ImageFile, ImageOps, UnidentifiedImageError
from PIL import features as _pillow

MAX_BYTES = 64 * 2**20
MAX_SIDE = 32_768  # pixels: a hand scroll passes, a one-pixel ribbon does not
MAX_PIXELS = 80_000_000  # Pillow warns above 89,478,485
GROUND = (255, 255, 255)
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", *(("AVIF",) if _pillow.check("avif") else ()))
REASONS = (
    "empty",
    "html",
    "git-lfs pointer",
    "not a picture",
    "unsupported",
    "truncated or damaged",
    "too small",
    "too large",
    "animated",
)

# The formats above open with these; a file that starts so and does not open is damaged rather than foreign.
_OURS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"RIFF", b"II*\0", b"MM\0*", b"BM", b"GIF8")
_FOREIGN = {
    b"%!PS": "PostScript",
    b"%PDF": "PDF",
    b"8BPS": "Photoshop",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"<svg": "SVG",
}
_HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"mif1", b"msf1"}


class PictureError(ValueError):
    """A picture that is refused: `reason` is one of REASONS, the message adds what was found."""

    def __init__(self, reason: str, found: str = ""):
        assert reason in REASONS, reason
        found = " ".join(found.split())[:200]
        super().__init__(f"{reason}: {found}" if found else reason)
        self.reason = reason


def decode(data: bytes, *, min_side: int) -> Image.Image:
    """The canonical picture of an encoded file: mode RGB, sRGB, upright.

    `min_side`: the smallest width or height that is accepted, in pixels. Raises PictureError, and nothing else for
    any content of `data`.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on: some library fills truncated pictures with grey")
    _sniff(data)
    try:
        # What Pillow warns of (odd metadata) costs no picture.
        # MPO is never named here: Pillow's JPEG plugin finds it by itself.
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image.size, min_side)
            if image.format != "MPO" and getattr(image, "is_animated", False):
                raise PictureError("animated", "more than one frame or page")
            image.load()
            if image.format == "PNG" and data[24] == 16 and isinstance(key := image.info.get("transparency"), tuple):
                # Samples are read as their upper bytes, the transparent colour is not (tRNS; PNG, 11.3.2.1).
                image.info["transparency"] = tuple(value >> 8 for value in key)
            return _canonical(image)
    except (PictureError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError("too large", str(error)) from error
    except UnidentifiedImageError as error:
        if data.startswith(_OURS) or data[4:12] in (b"ftypavif", b"ftypavis"):
            raise PictureError("truncated or damaged", "its header cannot be read") from error
        raise PictureError("not a picture", f"starts with {data[:12]!r}") from error
    except Exception as error:
        # Decoders raise whatever their parser tripped on, from KeyError to zlib.error.
        raise PictureError("truncated or damaged", f"{type(error).__name__}: {error}") from error


def crop_square(image: Image.Image, resolution: int) -> Image.Image:
    """The largest centred square, resized to `resolution` × `resolution` pixels (Lanczos)."""
    width, height = image.size
    side = min(width, height)
    # The box may lie between pixels: an odd margin stays centred.
    left, top = (width - side) / 2, (height - side) / 2
    return image.resize((resolution, resolution), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))


def trimmed(image: Image.Image, tolerance: int = 16) -> Image.Image:
    """A canonical picture without margins of one colour: passe-partouts, scanner beds, painted frames of one tone.

    From each side lines are cut while 98 % of their pixels lie within `tolerance` (of 255, in every channel) of that
    side's outermost colour, at most a quarter of the picture a side. What remains is a part of the same pixels.
    """
    pixels = np.asarray(image.convert("RGB"), dtype=np.int16)

    def margin(lines: np.ndarray) -> int:
        edge = np.median(lines[0], axis=0)
        limit = len(lines) // 4
        plain = (np.abs(lines[:limit] - edge).max(-1) <= tolerance).mean(1) >= 0.98
        return int(limit if plain.all() else np.argmin(plain))

    turned = pixels.transpose(1, 0, 2)
    top, bottom, left, right = margin(pixels), margin(pixels[::-1]), margin(turned), margin(turned[::-1])
    width, height = image.size
    return image.crop((left, top, width - right, height - bottom))


def to_array(image: Image.Image) -> np.ndarray:
    """A canonical picture as a writable uint8 array (height, width, 3)."""
    return np.array(image.convert("RGB"), dtype=np.uint8)


def encode_png(array: np.ndarray) -> bytes:
    """A uint8 array (height, width, 3) as PNG bytes: no date, no metadata, and not deflated.

    Deflate streams differ between builds of zlib, and the id of a picture is the hash of its bytes; the table that
    holds the bytes is compressed anyway.
    """
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG", compress_level=0)
    return buffer.getvalue()


def _sniff(data: bytes) -> None:
    """Refuse what commonly arrives in the place of a picture, under the name that tells the user what to do."""
    if not data:
        raise PictureError("empty")
    if len(data) > MAX_BYTES:
        raise PictureError("too large", f"{len(data):,} bytes, at most {MAX_BYTES:,}")
    start = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        raise PictureError("git-lfs pointer", "run `git lfs pull` where the pictures come from")
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        raise PictureError("html", "a web page was saved in place of the picture")
    if start.startswith(b"<?xml"):
        raise PictureError("unsupported", "SVG") if b"<svg" in start else PictureError("not a picture", "XML")
    for signature, name in _FOREIGN.items():
        if data.startswith(signature):
            raise PictureError("unsupported", name)
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS and b"avif" not in data[:64]:
        raise PictureError("unsupported", "HEIF")


def _check_size(size: tuple[int, int], min_side: int) -> None:
    width, height = size
    if max(size) > MAX_SIDE or width * height > MAX_PIXELS:
        limit = f"at most {MAX_SIDE:,} a side and {MAX_PIXELS:,} in all"
        raise PictureError("too large", f"{width} × {height} pixels, {limit}")
    if min(size) < min_side:
        raise PictureError("too small", f"{width} × {height} pixels, the shorter side must have {min_side}")


def _canonical(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    with contextlib.suppress(Exception):  # an unreadable EXIF block says nothing about orientation
        # In place, because the picture is turned before its metadata is rewritten: a broken EXIF block that
        # cannot be rewritten still leaves it upright. (A TIFF was turned, and lost its tag, when it was loaded.)
        ImageOps.exif_transpose(image, in_place=True)
    alpha = None
    if image.mode == "LA":  # stays grey, for the sake of a grey profile
        alpha = image.getchannel("A")
        image = image.getchannel("L")
    elif image.mode.startswith("I;16") and isinstance(key := image.info.get("transparency"), int):
        alpha = Image.fromarray(np.where(np.asarray(image) == key, 0, 255).astype(np.uint8))
    elif image.has_transparency_data and not image.mode.startswith(("I", "F")):
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert("RGB")
    image = _to_srgb(_to_eight_bits(image), profile)
    ground = Image.new("RGB", image.size, GROUND)  # also what leaves all metadata behind
    ground.paste(image, mask=alpha)
    return ground


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Any mode that a file can have → L, RGB, CMYK or LAB."""
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image
    if image.mode.startswith("I;16"):
        # A TIFF of 10 or 12 bits arrives in 16; all other files use the whole range.
        bits = getattr(image, "tag_v2", {}).get(258, (16,))[0]
        values = np.asarray(image).astype(np.float64) / (2**bits - 1)
        return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))
    if image.mode == "F":
        values = np.asarray(image)
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise PictureError("unsupported", "floating point beyond 0…1 has no agreed white")
        return Image.fromarray((values * 255).round().astype(np.uint8))
    if image.mode == "I":
        raise PictureError("unsupported", "signed or 32-bit integers have no agreed white")
    return image.convert("L" if image.mode == "1" else "RGB")


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """L, RGB, CMYK or LAB → RGB."""
    try:
        if image.mode == "LAB":
            return _converted(image, ImageCms.createProfile("LAB"))
        if profile:
            return _converted(image, io.BytesIO(profile))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, struct.error):
        # Broken, or of another colour space. Without a profile RGB and grey count as sRGB, CMYK as plain ink.
        pass
    return image.convert("RGB")


def _converted(image: Image.Image, source: ImageCms.core.CmsProfile | io.BytesIO) -> Image.Image:
    """A picture of the colours of a profile → RGB."""
    converted = ImageCms.profileToProfile(
        image,
        source,
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert converted is not None  # as it would be only in place
    return converted
