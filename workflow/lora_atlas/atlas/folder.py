"""The page of a folder of LoRA files: a map of each base's, copies as one point, and what its tables say of them all.

Of what a file's header says the page shows what the table "loras" has, and of names of files their last parts: nothing
else that somebody wrote into a file.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from ..collection.chance import LEVEL
from ..collection.spaces import spaces
from .collection import Placed
from .page import Finding
from .page import write as write_page
from .places import COLOURS, numbered, whole_numbers
from .thumbnails import Thumbnails, beside

BUDGET, LEAST = 30_000, 1_500_000  # bytes of pictures a LoRA, and of a small folder
TOGETHER = 3  # points that make a family
SHARED = 0.67  # of a family's members that have a word, or a label, before the family is called by it
UNUSUAL, ENOUGH = 3.5, 8  # modified z-score of an outlier (Iglewicz & Hoaglin 1993), and the LoRAs that it takes
FEW = 12  # files that are related to none, and are listed whatever their share
LISTED = 20  # refusals that are shown where there is no map
FLAT = 0.05  # of log norms: where they differ by less, a file that differs by a quarter is none that stands out
SMALL_WORDS = {
    "and",
    "the",
    "for",
    "lora",
    "lycoris",
    "style",
    "epoch",
    "step",
    "steps",
    "final",
    "last",
    "safetensors",
}

Row = Mapping[str, Any]


def write(path: str | Path, study: str, rows: Sequence[Row], where: Mapping[str, Placed]) -> None:
    """Write the page of a folder; `rows` of the table "loras", `where` each space's LoRAs stand."""
    by_name = {row["lora"]: row for row in rows}
    usable = sum(row["status"] == "imported" for row in rows)
    shown = Thumbnails(max(BUDGET * usable, LEAST))
    loras: list[dict[str, Any]] = []
    maps: list[dict[str, Any]] = []
    clusters: list[str] = []
    families: list[tuple[str, str, list[str]]] = []
    linked = {space: related(placed) for space, placed in where.items()}
    labels = sorted({(row["genre"] or "", row["artist"]) for row in rows if row["artist"] and row["space"]})
    artists = numbered(list(dict.fromkeys(artist for _, artist in labels)))
    genres = list(dict.fromkeys(genre for genre, _ in labels))
    for space, members in sorted(spaces(rows).items(), key=lambda item: (-len(item[1]), item[0])):
        placed = where[space]
        first = len(loras)
        cluster_of: dict[str, int] = {}
        for group in together(placed):
            name = suggested([by_name[lora] for lora in group], [by_name[x] for x in placed.points["lora"]])
            families.append((space, name or "", group))
            cluster_of |= dict.fromkeys(group, len(clusters))
            clusters.append(name or "")
        for lora in placed.points["lora"]:
            copies = [name for name in placed.members[lora] if name != lora]
            loras.append(
                _lora(by_name[lora], [by_name[name] for name in copies], artists, shown)
                | {"cluster": cluster_of.get(lora), "colour": cluster_of.get(lora)}
                | {"alone": lora not in linked[space] and len(placed.points) > 1}
            )
        maps.append(_map(space, members, placed, first, by_name))
    data = {
        "kind": "folder",
        "study": study,
        "lead": _lead(rows, usable, len(maps)),
        "facts": [],
        "links": [
            ("tables/loras.parquet", "all files as a table"),
            ("tables/neighbours.parquet", "neighbours as a table"),
        ],
        "setting": None,
        "genres": genres if len(genres) > 1 else [],
        "artists": [
            {
                "name": artist,
                "genre": (genre := next(g for g, a in labels if a == artist)) or None,
                "colour": i,
                "shape": genres.index(genre) if len(genres) > 1 else i // COLOURS,
            }
            for artist, i in artists.items()
        ],
        "clusters": clusters,
        "loras": loras,
        "refused": [[row["lora"], row["reason"]] for row in rows if row["status"] == "refused"][:LISTED],
        "maps": maps,
        "groups": [["bases", list(range(len(maps)))]] if maps else [],
        "measure": "distance of the updates at norm one: 0 the same, 1.41 unrelated",
        "pictures": shown.uris(),
    }
    write_page(path, data, _findings(rows, families, where, linked))


def _lead(rows: Sequence[Row], usable: int, count: int) -> str:
    copies = sum(bool(row["copy_of"]) and row["status"] == "imported" for row in rows)
    words = [f"{usable} LoRA{'s' * (usable != 1)} of {count} base{'s' * (count != 1)}" if usable else "no LoRA to read"]
    words += [f"{copies} cop{'ies' if copies > 1 else 'y'}"] * bool(copies) + [f"{len(rows) - usable} refused"] * (
        usable < len(rows)
    )
    return ", ".join(words)


def _lora(row: Row, copies: Sequence[Row], artists: Mapping[str, int], shown: Thumbnails) -> dict[str, Any]:
    preview = next(
        (number for each in (row, *copies) if (number := _preview(each, shown)) is not None),
        None,
    )
    facts = [
        ["base", row["family"] if row["family"] != "other" else "no known family"],
        ["kind", ", ".join(row["kinds"])],
        ["rank", ", ".join(map(str, row["ranks"]))],
        ["format", row["format"]],
        ["modules", f"{row['modules']:,}"],
        ["parameters", f"{row['parameters']:,}"],
        ["norm of ΔW", f"{row['norm']:.3g}" if row["norm"] is not None else None],
        ["file", Path(row["file"]).name],
        ["size", f"{row['bytes'] / 1e6:,.1f} MB" if row["bytes"] is not None else None],
    ]
    return {
        "name": row["lora"],
        "artist": artists.get(row["artist"]) if row["artist"] else None,
        "genre": row["genre"],
        "base": row["space"],
        "file": Path(row["file"]).name,
        "count": 1 + len(copies),
        "copies": [[copy["lora"], f"{copy['relation']} as {copy['copy_of']}"] for copy in copies],
        "facts": [[name, value] for name, value in facts if value],
        "remarks": remarks(row),
        "preview": [[preview, f"preview of {row['lora']}"]] if preview is not None else [],
    }


def _preview(row: Row, shown: Thumbnails) -> int | None:
    data = beside(row["file"])
    return None if data is None else shown.add(row["lora"], data)


def remarks(row: Row) -> list[str]:
    """What is odd about a file, in words."""
    found = [row["remark"]] if row["remark"] else []
    if row["header_family"] and row["header_family"] != row["family"]:
        found.append(f"its header says that it is of {row['header_family']}")
    return found


def _map(space: str, members: Sequence[Row], placed: Placed, first: int, by_name: Mapping[str, Row]) -> dict[str, Any]:
    order = placed.points["lora"].tolist()
    number = {lora: first + i for i, lora in enumerate(order)}
    x, y = whole_numbers(placed.points[["x", "y"]].to_numpy(float))
    near: list[list[int]] = [[] for _ in order]
    distance: list[list[float]] = [[] for _ in order]
    evidence: list[list[list[str]]] = [[] for _ in order]
    least = float(placed.near["p"].min()) if len(placed.near) else 1.0
    for row in placed.near.drop_duplicates(["one", "other"]).itertuples():
        i = number[row.one] - first
        near[i].append(number[row.other])
        distance[i].append(float(f"{row.distance:.4g}"))
        evidence[i].append(told(by_name[row.lora], by_name[row.neighbour], row.beyond, row.p, row.cosine, least))
    family = members[0]["family"]
    words = f"{len(members)} LoRA{'s' * (len(members) != 1)} of {family if family != 'other' else 'no known family'}"
    points = f", {len(order)} different updates" if len(order) < len(members) else ""
    linked = len(related(placed))
    if len(order) > 1 and not linked:
        points += ": none is nearer to another than noise, so that their places mean nothing"
    elif len(order) > 1 and linked < len(order):
        points += f": {linked} of {len(order)} are related; where the others, hollow, stand means nothing"
    return {
        "name": space,
        "label": f"{space} ({len(members)})",
        "says": words + points,
        "alike": False,
        "members": list(number.values()),
        "x": x,
        "y": y,
        "near": near,
        "distance": distance,
        "evidence": evidence,
    }


def related(placed: Placed) -> set[str]:
    """The points that a line links to another."""
    linked = placed.near[placed.near["related"]]
    return {*linked["one"], *linked["other"]}


def told(one: Row, other: Row, beyond: bool, p: float, cosine: float, least: float) -> list[str]:
    """How two LoRAs are related: a word for a mark, and the evidence. `beyond`: their cosine is, of what noise does.
    `least`: the smallest p of any two of the base.

    Of few LoRAs p cannot be small: what is beyond noise is then not called unrelated, and not called related either.
    """
    for a, b in ((one, other), (other, one)):
        if a["copy_of"] == b["lora"]:
            return ["copy", a["relation"]]
    if beyond and p <= LEVEL:
        return ["near", f"nearer than chance: cosine {cosine:.2g}, p {p:.2g}"]
    if beyond:
        few = ", the least that so few LoRAs can give" if p <= least else ""
        return ["maybe", f"nearer than noise: cosine {cosine:.2g}, p {p:.2g}{few}"]
    return ["unrelated", f"unrelated: no nearer than chance, p {p:.2g}"]


# --- families


def together(placed: Placed) -> list[list[str]]:
    """Families: points that lines link, TOGETHER of them or more; the largest first."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    order = placed.points["lora"].tolist()
    number = numbered(order)
    related = placed.near[placed.near["related"]]
    i, j = (np.array([number[lora] for lora in related[side]], int) for side in ("one", "other"))
    parts = connected_components(coo_matrix((np.ones(len(i)), (i, j)), (len(order), len(order))), directed=False)[1]
    found = [[order[n] for n in np.flatnonzero(parts == part)] for part in np.unique(parts)]
    return sorted((group for group in found if len(group) >= TOGETHER), key=len, reverse=True)


def suggested(group: Sequence[Row], all_of_them: Sequence[Row]) -> str | None:
    """A name for a family, of what the table knows: a label or a word of file names that most of its members have, and
    that most others have not. None where nothing of the kind is there."""
    inside = {row["lora"] for row in group}
    others = [row for row in all_of_them if row["lora"] not in inside]

    def share(rows: Sequence[Row], has: Any) -> float:
        return sum(has(row) for row in rows) / len(rows) if rows else 0.0

    for label in ("artist", "genre"):
        counted = Counter(row[label] for row in group if row[label])
        for value, _ in counted.most_common(1):

            def labelled(row: Row, label: str = label, value: str = value) -> bool:
                return bool(row[label] == value)

            if share(group, labelled) >= SHARED and share(others, labelled) < 0.5:
                return str(value)
    words: Counter[str] = Counter()
    for row in group:
        words.update(words_of(row["lora"]))
    for word, _ in sorted(words.items(), key=lambda item: (-item[1], -len(item[0]), item[0])):

        def named(row: Row, word: str = word) -> bool:
            return word in words_of(row["lora"])

        if share(group, named) >= SHARED and share(others, named) < 0.2:
            return word
    return None


def words_of(lora: str) -> set[str]:
    """Words of a file's name that may say something: letters, three or more."""
    found = re.findall(r"[^\W\d_]{3,}", lora.rsplit("/", 1)[-1].lower())
    return set(found) - SMALL_WORDS


def unusual(rows: Sequence[Row]) -> list[tuple[Row, str]]:
    """Files of one space that are unlike the others, and why; of a space of ENOUGH."""
    found = [
        (row, f"{row['zero_share']:.0%} of its modules are zero") for row in rows if (row["zero_share"] or 0) >= 0.5
    ]
    norms = np.log([row["norm"] for row in rows if row["norm"]])
    if len(norms) >= ENOUGH:
        middle = float(np.median(norms))
        spread = max(float(np.median(np.abs(norms - middle))), FLAT)
        for row in rows:
            if row["norm"] and 0.6745 * abs(np.log(row["norm"]) - middle) / spread > UNUSUAL:
                times = row["norm"] / np.exp(middle)
                found.append((row, f"its norm is {times:.3g} times the usual one of its base"))
    return found


def _counted(n: int, one: str, many: str) -> str:
    return f"{n or 'No'} {one if n <= 1 else many}"


def _findings(
    rows: Sequence[Row],
    families: Sequence[tuple[str, str, list[str]]],
    where: Mapping[str, Placed],
    linked: Mapping[str, Set[str]],
) -> list[Finding]:
    usable = [row for row in rows if row["status"] == "imported"]
    copies = [row for row in usable if row["copy_of"]]
    bases = spaces(rows)
    odd = [(row, why) for members in bases.values() for row, why in unusual(members)]
    said = [(row, why) for members in bases.values() for row in members for why in remarks(row)]
    refused = [row for row in rows if row["status"] == "refused"]
    # Of a base's only LoRA there is nothing to say.
    alone = [
        (space, lora)
        for space, placed in where.items() if len(placed.points) > 1
        for lora in placed.points["lora"] if lora not in linked[space]
    ]  # fmt: skip
    found = [
        Finding(
            "bases", "Which bases are they of?",
            f"{sum(len(own) for own in bases.values() if len(own) > 1)} of {len(rows)} files can be compared "
            "with others of the same base.", None, "loras",
            ["base", "family", "LoRAs", "different updates"],
            [[space, own[0]["family"], len(own), len(where[space].points)] for space, own in bases.items()],
        )
    ]  # fmt: skip
    found.append(
        Finding(
            "copies", "Which are copies?",
            f"{_counted(len(copies), 'file holds', 'files hold')} another one's update again, or nearly; "
            "on the map they are one point."
            if copies else "No file holds another one's update again.", None, "loras", ["LoRA", "is", "as"],
            [[row["lora"], row["relation"], row["copy_of"]] for row in copies],
        )
    )  # fmt: skip
    found.append(
        Finding(
            "families", "Which belong together?",
            f"{_counted(len(families), 'family', 'families')} of {TOGETHER} updates or more, each nearer to another of "
            "them than noise would be; a name is suggested where most members have it in their folders or names, and "
            "others have not."
            if families else f"No {TOGETHER} of them are nearer to each other than noise would be.", None, "neighbours",
            ["suggested name", "base", "LoRAs", "members"],
            [[name or "(no name that fits)", space, len(group), ", ".join(group)] for space, name, group in families],
        )
    )  # fmt: skip
    found.append(
        Finding(
            "unusual", "Which are unusual?",
            f"{_counted(len({row['lora'] for row, _ in odd}), 'file is', 'files are')} unlike the others of the base; "
            f"{_counted(len(alone), 'update has', 'updates have')} no related one among the others of the base.",
            None, "loras",
            ["LoRA", "base", "why"],
            [[row["lora"], row["space"], why] for row, why in odd]
            # Where most are alone, that is not what is unusual.
            + [[lora, space, "related to none of the others"] for space, lora in alone]
            * (2 * len(alone) <= len(usable) or len(alone) <= FEW),
        )
    )  # fmt: skip
    if said:
        found.append(
            Finding(
                "remarks", "What is to be known of them?",
                f"{_counted(len({row['lora'] for row, _ in said}), 'file', 'files')} with a remark of the reader's.",
                None, "loras", ["LoRA", "base", "remark"], [[row["lora"], row["space"], why] for row, why in said],
            )
        )  # fmt: skip
    if refused:
        found.append(
            Finding(
                "refused", "What could not be used?", f"{len(refused)} of {len(rows)} files, each for a reason.", None,
                "loras", ["LoRA", "reason"], [[row["lora"], row["reason"]] for row in refused],
            )
        )  # fmt: skip
    return found
