"""Every fault of pictures (rows 16 to 26 of the fault catalogue), built from bytes and thrown at the decoder."""

import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile, PngImagePlugin

from lora_atlas.pictures import decode as room
from lora_atlas.pictures.decode import FORMATS, PictureError, crop_square, decode, encode_png, to_array

ROOT = Path(__file__).parents[2]
ART = ROOT / "../shared/data/art"


def noise(height: int = 80, width: int = 100) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def refusal(data: bytes, min_side: int = 16) -> PictureError:
    with pytest.raises(PictureError) as caught:
        decode(data, min_side=min_side)
    return caught.value


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def lying_png(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises width × height pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = png_chunk(b"IHDR", header), png_chunk(b"IDAT", zlib.compress(b"\0" * 100)), png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def swapped_profile() -> bytes:
    """The sRGB profile with the colorants of red and blue exchanged."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(profile)


def black_only_profile() -> bytes:
    """A CMYK profile of a press whose coloured inks leave no trace: lightness is 100 % minus black."""
    corners = [(255 * (1 - k), 128, 128) for _ in range(8) for k in (0, 1)]  # black is the last, fastest input
    identity = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + identity * 4
    lut += bytes(value for corner in corners for value in corner) + identity * 3
    lut += b"\0" * (-len(lut) % 4)
    return icc_profile(b"prtrCMYKLab ", {b"A2B0": lut})


def linear_grey_profile() -> bytes:
    """Grey whose values are proportional to light."""
    return icc_profile(b"mntrGRAYXYZ ", {b"kTRC": b"curv\0\0\0\0" + struct.pack(">IHH", 1, 256, 0)})


def icc_profile(kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    text = b"desc\0\0\0\0" + struct.pack(">I", 6) + b"press\0" + b"\0" * 78
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    tags = tags | {b"desc": text + b"\0" * (-len(text) % 4), b"wtpt": white}
    table, body, offset = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += data
    header = bytearray(128)
    header[0:4] = struct.pack(">I", offset + len(body))
    header[8:12] = b"\x02\x10\0\0"
    header[12:24] = kind
    header[36:40] = b"acsp"
    header[68:80] = struct.pack(">3i", 63190, 65536, 54061)
    return bytes(header) + table + body


# --- good pictures


@pytest.mark.parametrize("format", FORMATS)
def test_each_format_decodes_to_the_same_canonical_form(format):
    picture = decode(encoded(Image.fromarray(noise()), format), min_side=80)
    assert (picture.mode, picture.size, picture.info) == ("RGB", (100, 80), {})
    if format in ("PNG", "TIFF", "BMP"):
        assert (to_array(picture) == noise()).all()


def test_metadata_is_left_behind():
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", "<script>")
    data = encoded(Image.fromarray(noise()), "PNG", pnginfo=texts, dpi=(300, 300))
    picture = decode(data, min_side=1)
    assert b"script" in data and b"script" not in encoded(picture, "PNG")
    assert not picture.info and not picture.getexif()


def test_grey_palette_and_one_bit_become_rgb():
    grey = np.tile(np.arange(100, dtype=np.uint8), (80, 1))
    assert (to_array(decode(encoded(Image.fromarray(grey), "PNG"), min_side=1)) == grey[..., None]).all()
    palette = Image.fromarray(noise()).quantize(16)
    assert (to_array(decode(encoded(palette, "PNG"), min_side=1)) == np.asarray(palette.convert("RGB"))).all()
    assert to_array(decode(encoded(Image.new("1", (80, 80), 1), "PNG"), min_side=1)).min() == 255


# --- row 16: what is no picture


@pytest.mark.fault(
    "pictures",
    "no bytes, a web page, a git-lfs pointer, JSON, or a format that is not read",
    "refused, each by what it is",
)
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\xef\xbb\xbf\n  <!DOCTYPE HTML><html><body>Are you a robot?", "html"),
        (b"<html>404</html>", "html"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "git-lfs pointer"),
        (b"hello", "not a picture"),
        (b'{"error": "rate limited"}', "not a picture"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "not a picture"),
        (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported"),
        (b"8BPS" + b"\0" * 100, "unsupported"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 100, "unsupported"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0" * 100, "unsupported"),
    ],
)
def test_no_picture_is_refused_by_name(data, reason):
    assert refusal(data).reason == reason


def test_the_message_says_what_was_found_and_stays_short_and_printable():
    assert str(refusal(b"")) == "empty"
    message = str(refusal(b"\x1b[31mred\n" + b"x" * 1000))
    assert "not a picture" in message and message.isprintable() and len(message) < 250


# --- rows 17 to 19: damaged pictures


@pytest.mark.fault("pictures", "a picture cut at 3, 50 or 90 per cent, in every format", "refused as truncated")
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("part", [0.03, 0.5, 0.9])
def test_a_truncated_picture_is_refused(format, part):
    data = encoded(Image.fromarray(noise()), format)
    assert refusal(data[: int(len(data) * part)]).reason == "truncated or damaged"


@pytest.mark.fault("pictures", "half a JPEG, which Pillow's verify() passes", "refused as truncated")
def test_half_a_jpeg_passes_verify_and_is_refused_all_the_same():
    data = encoded(Image.fromarray(noise()), "JPEG", quality=95)
    half = data[: len(data) // 2]
    Image.open(io.BytesIO(half)).verify()
    assert refusal(half).reason == "truncated or damaged"


@pytest.mark.fault("pictures", "a library sets Pillow's LOAD_TRUNCATED_IMAGES", "decoding stops, and names the switch")
def test_the_switch_that_paints_missing_halves_grey_stops_decoding(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(RuntimeError, match="LOAD_TRUNCATED_IMAGES"):
        decode(encoded(Image.fromarray(noise()), "PNG"), min_side=1)


def test_no_file_of_the_project_sets_that_switch():
    setting = re.compile(r"LOAD_TRUNCATED_IMAGES\s*=[^=]")
    assert setting.search("ImageFile.LOAD_TRUNCATED_IMAGES = True")
    assert not [path for path in (ROOT / "workflow").rglob("*.py") if setting.search(path.read_text())]


@pytest.mark.fault(
    "pictures",
    "random bytes of a picture are others, or cut",
    "a picture or a documented refusal, and never another error",
)
@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(FORMATS),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6),
    st.data(),
)
def test_damaged_bytes_give_a_picture_or_a_refusal_and_never_another_error(format, flips, more):
    data = bytearray(encoded(Image.fromarray(noise(20, 24)), format))
    for place, value in flips:
        data[place % len(data)] = value
    data = data[: more.draw(st.integers(0, len(data)))] if more.draw(st.booleans()) else data
    try:
        assert decode(bytes(data), min_side=1).mode == "RGB"
    except PictureError as error:
        assert error.reason in room.REASONS  # noqa: PT017 - either outcome is right


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(data):
    refusal(data)


# --- row 20: size


@pytest.mark.fault(
    "pictures",
    "a header that lies about its size, or one side of 80,000,000 pixels",
    "refused as too large before any pixel is decoded",
)
@pytest.mark.parametrize(
    ("width", "height"),
    [(100_000, 100_000), (80_000_000, 1), (1, 80_000_000), (12_000, 7_000), (11_000, 8_500), (33_000, 100)],
)
def test_a_bomb_is_refused_before_its_pixels(width, height):
    assert refusal(lying_png(width, height), min_side=1).reason == "too large"


def test_a_large_picture_within_the_caps_is_not_a_bomb():
    assert decode(encoded(Image.new("L", (20_000, 40)), "PNG"), min_side=16).size == (20_000, 40)


@pytest.mark.fault("pictures", "a file beyond the largest number of bytes", "refused as too large")
def test_a_file_of_too_many_bytes_is_refused(monkeypatch):
    data = encoded(Image.fromarray(noise()), "PNG")
    monkeypatch.setattr(room, "MAX_BYTES", len(data) - 1)
    assert refusal(data).reason == "too large"


def test_the_shorter_side_counts():
    data = encoded(Image.fromarray(noise(63, 300)), "PNG")
    assert decode(data, min_side=63).size == (300, 63)
    error = refusal(data, min_side=64)
    assert error.reason == "too small" and "300 × 63" in str(error) and "64" in str(error)


# --- row 21: formats by name


@pytest.mark.fault("pictures", "PostScript under the name of a JPEG", "refused; no interpreter is started")
def test_postscript_never_reaches_an_interpreter(monkeypatch):
    eps = encoded(Image.fromarray(noise()), "EPS")
    assert Image.open(io.BytesIO(eps)).format == "EPS"  # without a list of formats Pillow opens it
    assert refusal(eps).reason == "unsupported"
    monkeypatch.setattr(room, "_FOREIGN", {})
    assert refusal(eps).reason == "not a picture"  # the list alone is enough


@pytest.mark.fault("pictures", "TGA, PPM, ICO or PCX under another name", "refused")
@pytest.mark.parametrize("format", ["TGA", "PPM", "ICO", "PCX"])
def test_formats_outside_the_list_are_refused(format):
    assert refusal(encoded(Image.fromarray(noise()), format)).reason == "not a picture"


# --- row 22: depth


@pytest.mark.fault("pictures", "16 bits a channel", "scaled to 8, not clipped")
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(format):
    values = np.linspace(0, 65535, 6400).reshape(80, 80).astype(np.uint16)
    found = to_array(decode(encoded(Image.fromarray(values), format), min_side=1))[..., 0]
    assert (found == np.round(values / 257)).all()


@pytest.mark.fault("pictures", "floats outside 0 to 1, or not a number", "refused")
def test_floats_are_scaled_from_zero_to_one_and_nothing_else():
    values = np.linspace(0, 1, 6400, dtype=np.float32).reshape(80, 80)
    found = to_array(decode(encoded(Image.fromarray(values), "TIFF"), min_side=1))[..., 0]
    assert np.abs(found - values * 255).max() <= 0.5
    for bad in (values * 255, values - 0.5, np.where(values > 0.5, np.nan, values)):
        assert refusal(encoded(Image.fromarray(bad.astype(np.float32)), "TIFF")).reason == "unsupported"


def test_integers_of_32_bits_are_refused():
    whole = np.full((80, 80), 70_000, dtype=np.int32)
    assert refusal(encoded(Image.fromarray(whole), "TIFF")).reason == "unsupported"


# --- row 23: transparency


@pytest.mark.fault("pictures", "colours hidden under full transparency", "white; nothing of them is seen")
def test_transparent_pixels_become_white_and_reveal_nothing():
    hidden = np.zeros((80, 80, 4), dtype=np.uint8)
    hidden[..., 0] = 255  # red under full transparency
    hidden[40:, :, 3] = 255
    hidden[60:, :, 3] = 128
    found = to_array(decode(encoded(Image.fromarray(hidden), "PNG"), min_side=1))
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[45, 0].tolist() == [255, 0, 0]
    assert found[70, 0].tolist() == [255, 127, 127]


@pytest.mark.parametrize(
    ("kind", "samples", "key", "seen"),
    [
        (0, (40000,), (40000,), (255, 255, 255)),
        (0, (40000,), (40001,), (156, 156, 156)),
        (2, (40000, 1000, 65535), (40000, 1000, 65535), (255, 255, 255)),
        (2, (0, 0, 65535), (0, 0, 255), (0, 0, 255)),
    ],
)
def test_a_key_colour_of_sixteen_bits_hides_itself_and_no_other(kind, samples, key, seen):
    """PNG, 11.3.2.1: samples that equal tRNS are transparent. Pillow compares it with the samples' upper bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    def packed(values: tuple[int, ...]) -> bytes:
        return struct.pack(f">{len(values)}H", *values)

    header = struct.pack(">IIBBBBB", 8, 8, 16, kind, 0, 0, 0)
    lines = zlib.compress((b"\0" + packed(samples) * 8) * 8)
    chunks = [(b"IHDR", header), (b"tRNS", packed(key)), (b"IDAT", lines), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)
    assert (np.asarray(decode(data, min_side=1)) == seen).all()


def test_transparency_of_grey_palette_and_key_colour():
    grey = Image.new("LA", (80, 80), (0, 0))
    palette = Image.new("P", (80, 80), 3)
    palette.putpalette([10, 20, 30] * 256)
    key = Image.new("RGB", (80, 80), (10, 20, 30))
    cases = [
        encoded(grey, "PNG"),
        encoded(palette, "PNG", transparency=3),
        encoded(palette, "GIF", transparency=3),
    ]
    cases.append(encoded(key, "PNG", transparency=(10, 20, 30)))
    for data in cases:
        assert to_array(decode(data, min_side=1)).min() == 255
    assert to_array(decode(encoded(palette, "PNG"), min_side=1))[0, 0].tolist() == [10, 20, 30]


# --- row 24: colour


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_an_embedded_profile_is_applied(format):
    options = {"lossless": True} if format == "WEBP" else {}
    red = Image.new("RGB", (80, 80), (255, 0, 0))
    data = encoded(red, format, icc_profile=swapped_profile(), **options)
    assert to_array(decode(data, min_side=1))[0, 0].tolist() == pytest.approx([0, 0, 255], abs=3)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same = decode(encoded(red, format, icc_profile=srgb, **options), min_side=1)
    assert to_array(same)[0, 0].tolist() == pytest.approx([255, 0, 0], abs=1)


def test_a_profile_survives_orientation_and_palette_and_transparency():
    exif = Image.Exif()
    exif[0x0112] = 6
    red = Image.new("RGB", (80, 60), (255, 0, 0))
    turned = decode(encoded(red, "JPEG", icc_profile=swapped_profile(), exif=exif, quality=95), min_side=1)
    assert turned.size == (60, 80) and to_array(turned)[0, 0].tolist() == pytest.approx([0, 0, 255], abs=6)
    for other in (red.quantize(4), red.convert("RGBA")):
        found = decode(encoded(other, "PNG", icc_profile=swapped_profile()), min_side=1)
        assert to_array(found)[0, 0].tolist() == pytest.approx([0, 0, 255], abs=3)


@pytest.mark.fault("pictures", "CMYK with a profile of its own", "converted by the profile")
@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_goes_through_its_profile(format):
    cyan = Image.new("CMYK", (80, 80), (255, 0, 0, 0))
    plain = to_array(decode(encoded(cyan, format), min_side=1))[0, 0]
    assert plain.tolist() == pytest.approx([0, 255, 255], abs=3)
    pressed = to_array(decode(encoded(cyan, format, icc_profile=black_only_profile()), min_side=1))[0, 0]
    assert pressed.tolist() == pytest.approx([255, 255, 255], abs=3)
    black = encoded(Image.new("CMYK", (80, 80), (0, 0, 0, 255)), format, icc_profile=black_only_profile())
    assert to_array(decode(black, min_side=1))[0, 0].max() < 20


@pytest.mark.fault("pictures", "a colour profile that is damaged or of another space", "ignored; the pixels stay")
@pytest.mark.parametrize("profile", [b"no profile", black_only_profile()])
def test_a_profile_that_does_not_fit_is_ignored(profile):
    data = encoded(Image.fromarray(noise()), "PNG", icc_profile=profile)
    assert (to_array(decode(data, min_side=1)) == noise()).all()


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_grey_goes_through_its_profile(mode):
    data = encoded(Image.new(mode, (80, 80), 128 if mode == "L" else (128, 255)), "PNG")
    tagged = encoded(Image.open(io.BytesIO(data)), "PNG", icc_profile=linear_grey_profile())
    assert to_array(decode(data, min_side=1))[0, 0, 0] == 128
    assert to_array(decode(tagged, min_side=1))[0, 0].tolist() == pytest.approx([188] * 3, abs=2)


def test_lab_is_read_as_lab():
    grey = encoded(Image.new("LAB", (80, 80), (255, 128, 128)), "TIFF")
    assert to_array(decode(grey, min_side=1)).min() >= 254


# --- row 25: orientation


def halves() -> Image.Image:
    """Left half black, right half white, 96 × 48."""
    array = np.zeros((48, 96, 3), dtype=np.uint8)
    array[:, 48:] = 255
    return Image.fromarray(array)


@pytest.mark.fault("pictures", "an EXIF orientation", "applied once, and not again after saving")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_orientation_is_applied_once(format):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned a quarter clockwise: the left side comes to the top
    picture = decode(encoded(halves(), format, exif=exif), min_side=1)
    array = to_array(picture)
    assert picture.size == (48, 96)
    assert array[:40].max() < 20 and array[-40:].min() > 235
    again = decode(encoded(picture, "PNG"), min_side=1)
    assert again.size == (48, 96)


@pytest.mark.fault("pictures", "an EXIF block that is damaged", "the picture is read")
def test_a_broken_exif_block_does_not_cost_the_picture():
    picture = decode(encoded(halves(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xffrubbish"), min_side=1)
    assert picture.size == (96, 48)


# --- row 26: frames


@pytest.mark.fault("pictures", "an animation in any format", "refused as animated")
@pytest.mark.parametrize("format", [f for f in ("GIF", "PNG", "WEBP", "TIFF", "AVIF") if f in FORMATS])
def test_several_frames_are_refused(format):
    frames = [Image.new("RGB", (80, 80), (50 * n, 0, 255 - 50 * n)) for n in range(5)]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    assert refusal(data).reason == "animated"
    assert decode(encoded(frames[0], format), min_side=1).size == (80, 80)


def test_the_preview_in_a_jpeg_of_a_phone_is_no_second_frame():
    first, second = Image.new("RGB", (80, 80), (255, 0, 0)), Image.new("RGB", (40, 40), (0, 0, 255))
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    found = decode(data, min_side=1)
    assert found.size == (80, 80) and to_array(found)[0, 0, 0] > 240


# --- square and bytes


def test_the_square_is_centred_and_exact():
    wide = np.zeros((50, 150, 3), dtype=np.uint8)
    wide[:, 50:100] = 200
    assert (to_array(crop_square(Image.fromarray(wide), 50)) == 200).all()
    assert (to_array(crop_square(Image.fromarray(wide.transpose(1, 0, 2)), 50)) == 200).all()


def test_an_odd_margin_stays_centred():
    array = np.random.default_rng(0).integers(0, 256, (64, 97, 3), dtype=np.uint8)
    there = to_array(crop_square(Image.fromarray(array), 32)).astype(int)
    back = to_array(crop_square(Image.fromarray(array[:, ::-1]), 32)).astype(int)[:, ::-1]
    assert np.abs(there - back).max() <= 1


def test_a_square_of_the_right_size_is_not_resampled():
    assert (to_array(crop_square(Image.fromarray(noise(64, 64)), 64)) == noise(64, 64)).all()
    assert crop_square(Image.fromarray(noise(20, 30)), 64).size == (64, 64)


def test_png_bytes_are_the_same_each_time_and_carry_the_pixels():
    assert encode_png(noise()) == encode_png(noise().copy())
    assert (to_array(decode(encode_png(noise()), min_side=1)) == noise()).all()
    array = to_array(decode(encode_png(noise()), min_side=1))
    array[:] = 0  # ours to write to


@pytest.mark.skipif(not ART.is_dir(), reason=f"no real pictures at {ART}")
def test_every_real_painting_decodes():
    files = sorted(ART.glob("*/*.jpg"))
    assert len(files) > 100
    for path in files:
        picture = decode(path.read_bytes(), min_side=64)
        assert picture.mode == "RGB" and np.asarray(picture).std() > 5
