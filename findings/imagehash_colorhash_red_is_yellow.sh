#!/usr/bin/env bash
# ImageHash: to colorhash red is yellow, green is cyan and blue is black, and half black is three quarters black but not five eighths
#
# Versions: ImageHash 4.3.2, pillow 13.0.0, numpy 2.4.6, Python 3.11 to 3.13.
#
# What it does. It counts pixels in six bins of hue whose borders are red, yellow, green, cyan, blue and magenta themselves: each bin
# has a primary colour at one end and a secondary colour, rounded down, at the other. A red picture and a yellow one are equal; a
# red one and one that is redder by the least step towards magenta (255, 0, 6) differ. Pixels whose grey value is below 32 count as
# black before anybody asks for their hue, and that of pure blue is 29. A saturation of exactly 170, as #ff5555 has, is in none of the
# bins. Shares of a picture are then written in three bits each, with a formula that lets the high bit shine into the middle one: 4
# eighths look like 6, and 5 like 7, while 4 and 5 differ.
#
# What most would expect. Bins around the colours that have names, not borders on them, and of a share the binary number, which its
# docstring lets one hope for. With colorhash one sorts pictures by palette, where pure colours are
# frequent: drawings, logos, flat design.
#
# Seen 2026-11-30:
#   one colour: red 00000038000, yellow 00000038000, green 00000000e00, cyan 00000000e00, blue 38000000000, black 38000000000,
#     magenta 00000000038
#   red 00000038000 and its neighbours: (255, 6, 0) 00000038000, (255, 0, 6) 00000000007
#   #ff5454 00000038000, #ff5555 00000000000, #ff5656 00e00000000
#   black eighths over red, the bits of black: 0 000, 1 001, 2 010, 3 011, 4 110, 5 111, 6 110, 7 111
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
  ImageHash==4.3.2 pillow==13.0.0 numpy==2.4.6 scipy==1.17.1 PyWavelets==1.9.0
cat > "$folder/one.py" <<'PY'
import imagehash
from PIL import Image


def plain(colour):
    return imagehash.colorhash(Image.new("RGB", (64, 64), colour))


NAMED = {"red": "#f00", "yellow": "#ff0", "green": "#0f0", "cyan": "#0ff", "blue": "#00f", "black": "#000", "magenta": "#f0f"}
print("one colour:", ", ".join(f"{name} {plain(colour)}" for name, colour in NAMED.items()))
for one, another in (("red", "yellow"), ("green", "cyan"), ("blue", "black")):
    assert plain(NAMED[one]) == plain(NAMED[another])
assert plain("#0606ff") == plain(NAMED["magenta"])  # a blue that is light enough
assert len({str(plain(colour)) for colour in NAMED.values()}) == 4

warm, cold = (255, 6, 0), (255, 0, 6)
print(f"red {plain('#f00')} and its neighbours: {warm} {plain(warm)}, {cold} {plain(cold)}")
assert plain("#f00") == plain(warm) != plain(cold)

print(", ".join(f"{colour} {plain(colour)}" for colour in ("#ff5454", "#ff5555", "#ff5656")))
assert not plain("#ff5555").hash.any()  # black would be 38000000000, white 07000000000

bits = []
for eighths in range(8):
    picture = Image.new("RGB", (64, 64), "red")
    picture.paste("black", (0, 0, 64, 8 * eighths))
    hashed = imagehash.colorhash(picture)
    assert all(row.any() == (number == 2 + 6 or (number == 0 and eighths > 0)) for number, row in enumerate(hashed.hash))
    bits.append("".join("01"[int(bit)] for bit in hashed.hash[0]))
print("black eighths over red, the bits of black:", ", ".join(f"{eighths} {found}" for eighths, found in enumerate(bits)))
assert bits == ["000", "001", "010", "011", "110", "111", "110", "111"]
PY
"$folder/env/bin/python" "$folder/one.py"
echo "as seen"
