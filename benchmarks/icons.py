"""The near-duplicate finder on drawings of one subject by two design houses: how alike are they to it?

    make extras
    python benchmarks/icons.py [HOUSE …]

For every pair of houses: of the subjects that both draw, how many drawings would be taken for one picture
(pictures.duplicates: 0.7), and the median correlation of structure; beside pairs of different subjects.
"""

import itertools
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "workflow"))

import numpy as np

from lora_atlas.pictures.duplicates import SIEVE, Likeness, correlation, likeness
from lora_atlas.pictures.sources.iconify import _box, render, subject
from lora_atlas.sections import Icons

HOUSES = [
    "twemoji", "noto", "noto-v1", "openmoji", "emojione", "emojione-v1", "fxemoji", "fluent-emoji", "fluent-emoji-flat",
]  # fmt: skip
COUNT, LIMIT = 60, 0.7


def drawn(house: str) -> dict[str, tuple[dict, dict]]:
    data = json.loads((ROOT / f"results/extras/iconify/json/{house}.json").read_text())
    return {subject(n): (d, data) for n, d in data["icons"].items() if not d.get("hidden") and "skin-tone" not in n}


def main() -> None:
    houses = sys.argv[1:] or HOUSES
    found = {house: drawn(house) for house in houses}
    kept: dict[tuple[str, str], Likeness] = {}

    def of(house: str, name: str) -> Likeness:
        if (house, name) not in kept:
            drawing, data = found[house][name]
            png = render(drawing["body"], _box(drawing, data), Icons())
            row = {"picture": name, "artist": house, "image": {"bytes": png}, "width": 64, "height": 64}
            kept[house, name] = likeness(row)
        return kept[house, name]

    print("| houses | subjects of both | taken for one | median correlation | of different subjects: taken | median |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    rng = np.random.default_rng(0)
    for a, b in itertools.combinations(houses, 2):
        both = sorted(found[a].keys() & found[b].keys())
        chosen = [both[i] for i in rng.permutation(len(both))[:COUNT]]
        cells = []
        for other in (chosen, chosen[1:] + chosen[:1]):
            values, taken = [], 0
            for name, second in zip(chosen, other, strict=True):
                try:
                    x, y = of(a, name), of(b, second)
                except ValueError:
                    continue
                value = correlation(x.structure, y.structure)
                values.append(value)
                taken += value > LIMIT and int((x.bits != y.bits).sum()) <= SIEVE
            cells += [f"{taken} of {len(values)}", f"{np.median(values):.2f}"]
        print(f"| {a}, {b} | {len(both)} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
