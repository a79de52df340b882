#!/usr/bin/env bash
# @iconify-json/line-md: drawn by a renderer of still pictures, 1,231 icons are 280 pictures
#
# Versions: @iconify-json/line-md 1.2.16 (npm), vl-convert-python 1.9.0.post1 (resvg), NumPy 2.4.6, Pillow 13.0.0,
# Python 3.11 to 3.13.
#
# What it holds. Iconify's families are JSON of SVG bodies, and reading them needs no browser. In this one nearly every body draws
# itself: strokes begin wholly dashed away (stroke-dashoffset as long as the dash), and a SMIL animation with fill="freeze" brings
# them to 0 one after another. The attributes in the file are those of the first moment. Drawn as they stand, most icons keep the
# one stroke whose offset the animation alone states, so that the house is its doorstep, and hundreds of icons with the same
# frame are one picture. Of all this info.json says a tag among others, "Contains Animations".
#
# What most would expect. That such an icon renders as it ends, or is blank at worst, which a check for blank pictures would find;
# these are not blank. Who trains or retrieves on rendered icons has other pictures than their names say.
# Setting each attribute to where its frozen animation ends gives the icons that a browser shows after a second.
#
# Seen 2026-11-30:
#   1233 drawings, of which 1231 hold SMIL animations, 1228 of them with one that ends and stays
#   as the files stand: all of its final ink has an icon in 83 cases, less than half in 342, median 0.62
#   icons whose picture is another icon's too: 1105 as the files stand, 351 as they end
#   pictures as the files stand: 280 of 1231 icons
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
(cd "$folder" && npm pack --silent @iconify-json/line-md@1.2.16 > /dev/null && tar xzf *.tgz)
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
  vl-convert-python==1.9.0.post1 numpy==2.4.6 pillow==13.0.0
cat > "$folder/one.py" <<'PY'
import collections
import io
import json
import pathlib
import sys
from xml.etree import ElementTree

import numpy as np
import vl_convert
from PIL import Image

package = pathlib.Path(sys.argv[1])
icons = json.loads((package / "icons.json").read_text(encoding="utf-8"))["icons"]
HEAD = '<svg xmlns="http://www.w3.org/2000/svg" width="48" height="48" viewBox="0 0 24 24" color="#000">'


def drawn(svg):
    image = Image.open(io.BytesIO(vl_convert.svg_to_png(svg, scale=1.0, ppi=72.0)))
    white = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(white, image.convert("RGBA")).convert("L"))


def as_it_ends(svg):
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        for animation in element:
            values = animation.get("to") or (animation.get("values") or "").rpartition(";")[2]
            if animation.tag.endswith(("}animate", "}set")) and animation.get("fill") == "freeze" and values:
                element.set(animation.get("attributeName"), values)
    ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
    return ElementTree.tostring(root, encoding="unicode")


moving = {name: icon["body"] for name, icon in icons.items() if "<animate" in icon["body"] or "<set" in icon["body"]}
print(f"{len(icons)} drawings, of which {len(moving)} hold SMIL animations, "
      f"{sum('freeze' in body for body in moving.values())} of them with one that ends and stays")
shares, first, last = [], collections.Counter(), collections.Counter()
for body in moving.values():
    svg = f"{HEAD}{body}</svg>"
    begins, ends = drawn(svg), drawn(as_it_ends(svg))
    shares.append((255.0 - begins).sum() / max((255.0 - ends).sum(), 1.0))
    first[begins.tobytes()] += 1
    last[ends.tobytes()] += 1
shares = np.array(shares)
same, same_at_the_end = (sum(number for number in each.values() if number > 1) for each in (first, last))
half, whole = int((shares < 0.5).sum()), int((np.abs(shares - 1) < 0.01).sum())
print(f"as the files stand: all of its final ink has an icon in {whole} cases, less than half in {half}, median {np.median(shares):.2f}")
print(f"icons whose picture is another icon's too: {same} as the files stand, {same_at_the_end} as they end")
print("pictures as the files stand:", len(first), "of", len(moving), "icons")
assert (len(moving), whole, half, same, same_at_the_end, len(first)) == (1231, 83, 342, 1105, 351, 280)
PY
"$folder/env/bin/python" "$folder/one.py" "$folder/package"
echo "as seen"
