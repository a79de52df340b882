#!/usr/bin/env bash
# Pillow: the transparent colour of a 16-bit PNG is held against samples of 8 bits, misses itself and hides another
#
# Versions: Pillow 13.0.0, Python 3.11 to 3.13.
#
# What it does. A PNG of grey or RGB may name one colour as transparent (chunk tRNS), in the bits of its samples. Pillow reads RGB
# samples of 16 bits as their upper bytes, keeps the named colour in 16 bits, and convert("RGBA") compares the two. What was to be
# transparent stays opaque; and where the named colour is dark (each value below 256), the bright colour whose upper bytes are
# these values becomes transparent: pure blue, where (0, 0, 255), all but black, was named. Grey of 16 bits (mode I;16) keeps its
# samples, has_transparency_data says yes, and convert("RGBA") makes every pixel white and opaque, whatever it was.
#
# What most would expect. That a sample is transparent where it equals the named colour, as the specification has it (11.3.2.1), or
# that Pillow compares both by their upper bytes. Scans and renderings of 16 bits with a keyed ground come out with their ground as a
# colour of the picture, or with holes in the picture.
#
# Seen 2026-11-30:
#   RGB, the named colour           mode RGB   of the specification transparent  of Pillow opaque      (156, 3, 255)
#   RGB, blue, another is named     mode RGB   of the specification opaque       of Pillow transparent (0, 0, 255)
#   RGB, values of the upper bytes  mode RGB   of the specification opaque       of Pillow transparent (18, 86, 154)
#   grey, the named grey            mode I;16  of the specification transparent  of Pillow opaque      (255, 255, 255)
#   grey, another is named          mode I;16  of the specification opaque       of Pillow opaque      (255, 255, 255)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check pillow==13.0.0
cat > "$folder/one.py" <<'PY'
import io
import struct
import zlib

from PIL import Image

GREY, RGB = 0, 2


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(kind, samples, key):
    header = struct.pack(">IIBBBBB", 4, 4, 16, kind, 0, 0, 0)
    line = b"\0" + struct.pack(f">{len(samples)}H", *samples) * 4
    parts = [(b"IHDR", header), (b"tRNS", struct.pack(f">{len(key)}H", *key)), (b"IDAT", zlib.compress(line * 4))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in [*parts, (b"IEND", b"")])


CASES = {
    "RGB, the named colour": (RGB, (40000, 1000, 65535), (40000, 1000, 65535)),
    "RGB, blue, another is named": (RGB, (0, 0, 65535), (0, 0, 255)),
    "RGB, values of the upper bytes": (RGB, (0x1234, 0x5678, 0x9ABC), (0x12, 0x56, 0x9A)),
    "grey, the named grey": (GREY, (40000,), (40000,)),
    "grey, another is named": (GREY, (40000,), (12,)),
}
seen = []
for name, (kind, samples, key) in CASES.items():
    image = Image.open(io.BytesIO(png(kind, samples, key)))
    red, green, blue, alpha = image.convert("RGBA").getpixel((0, 0))
    right = "transparent" if samples == key else "opaque"
    made = "transparent" if alpha == 0 else "opaque"
    seen.append((right, made))
    print(f"{name:31} mode {image.mode:5} of the specification {right:11}  of Pillow {made:11} {(red, green, blue)}")
T, O = "transparent", "opaque"
assert seen == [(T, O), (O, T), (O, T), (T, O), (O, O)]
PY
"$folder/env/bin/python" "$folder/one.py"
echo "as seen"
