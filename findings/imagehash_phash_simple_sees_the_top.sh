#!/usr/bin/env bash
# ImageHash: phash_simple looks at the top quarter of a picture alone
#
# Versions: ImageHash 4.3.2, pillow 13.0.0, numpy 2.4.6, scipy 1.17.1, Python 3.11 to 3.13.
#
# What it does. The picture becomes 32 x 32 grey values. Their cosine transform is taken along rows only, and the hash is cut out of
# its top left corner as if it had been taken along columns too. So the eight rows of the hash are no low frequencies but the first
# eight of the 32 rows of pixels: what lies below them is not looked at. Two pictures that share their top quarter, a sky, a frame or a
# strip with a title, have distance 0, and a picture whose top quarter was changed has another hash altogether. A greater hash_size does
# not change the quarter, a greater highfreq_factor makes it an eighth or less.
#
# What most would expect. A hash of the whole picture, as the other four are, and as the article says that both its docstring and
# that of phash name. `phash` transforms both ways. The maintainer has said that they differ in the number of transforms, not what follows.
#
# Seen 2026-11-30 (two pictures without likeness; distance of 64 bits to the first of them):
#                  the other   the first, below its top quarter the other   the first, in its top quarter the other
#   average_hash          21                                           15                                        11
#   phash                 32                                           24                                        20
#   dhash                 29                                           18                                        13
#   whash                 26                                           16                                        12
#   phash_simple          34                                            0                                        34
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
  ImageHash==4.3.2 pillow==13.0.0 numpy==2.4.6 scipy==1.17.1 PyWavelets==1.9.0
cat > "$folder/one.py" <<'PY'
import imagehash
import numpy as np
from PIL import Image

SIDE, QUARTER = 256, 64


def picture(seed):
    colours = np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    return Image.fromarray(colours).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


first, other = picture(1), picture(2)
below, above = first.copy(), first.copy()
margin = 8  # filters look a little over the border
below.paste(other.crop((0, QUARTER + margin, SIDE, SIDE)), (0, QUARTER + margin))
above.paste(other.crop((0, 0, SIDE, QUARTER + margin)), (0, 0))

print(f"{'':12}   the other   the first, below its top quarter the other   the first, in its top quarter the other")
found = {}
for name in ("average_hash", "phash", "dhash", "whash", "phash_simple"):
    make = getattr(imagehash, name)
    found[name] = [int(make(first) - make(each)) for each in (other, below, above)]
    print("{:12}   {:9}   {:42}   {:39}".format(name, *found[name]))
simple = found.pop("phash_simple")
assert simple[1] == 0 and simple[0] == simple[2] > 20
assert all(distances[1] >= 10 for distances in found.values())
for size in (4, 8, 16):
    make = imagehash.phash_simple
    assert make(first, hash_size=size) == make(below, hash_size=size) and make(first, hash_size=size) != make(above, hash_size=size)
PY
"$folder/env/bin/python" "$folder/one.py"
echo "as seen"
