"""The plan of a study: which pictures each LoRA is trained on, and on which side of the split it stands."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .seeds import derive_seed

FREE, SHARED, DISJOINT = CONTENTS = "free", "shared", "disjoint"  # what subjects have to do with the split


class StudyError(ValueError):
    """A configuration or a set of pictures that no study can be made of; the message lists every problem."""


def needed(plan: Mapping[str, Any]) -> int:
    """How many pictures an artist needs: the largest gallery LoRA and the largest query LoRA share none."""
    return max(plan["gallery"]) + max(plan["query"])


def too_few(counts: Mapping[str, int], plan: Mapping[str, Any], limit: int | None = None) -> list[str]:
    """One sentence that names every artist with too few pictures, or nothing; `limit`: pictures.per_artist, where no
    artist can have more."""
    short = {artist: count for artist, count in counts.items() if count < needed(plan)}
    if not short:
        return []
    if limit is not None and limit < needed(plan):
        return [
            f"plan: each artist needs {needed(plan)} pictures (the largest of plan.gallery and the largest of "
            f"plan.query, {max(plan['gallery'])} + {max(plan['query'])}), and pictures.per_artist allows {limit}; "
            f"raise it to {needed(plan)} or more, or lower these numbers"
        ]
    listed = ", ".join(f"{artist} ({count})" for artist, count in sorted(short.items()))
    return [
        f"plan: too few pictures: {listed}; each artist needs {needed(plan)} (the largest of plan.gallery and the "
        f"largest of plan.query, {max(plan['gallery'])} + {max(plan['query'])}). Add pictures, lower these numbers, "
        "or choose artists with pictures.artists"
    ]


def require(counts: Mapping[str, int], plan: Mapping[str, Any], when: str) -> None:
    """Raise one StudyError that names all artists with too few pictures, if there are any; `when` begins it."""
    problems = too_few(counts, plan)
    if problems:
        raise StudyError(f"{when}:\n{problems[0]}")


def subjects(pictures: Iterable[pa.Table]) -> dict[str, str]:
    """Picture → what it shows, of the kept pictures whose source says it."""
    return {
        row["picture"]: row["subject"]
        for table in pictures
        for row in table.select(["picture", "subject", "status"]).to_pylist()
        if row["status"] == "kept" and row["subject"]
    }


def lora_ids(artist: str, plan: Mapping[str, Any]) -> list[str]:
    """Ids of an artist's LoRAs: the gallery's, then the queries'."""
    return [f"{artist}/{number}" for number in lora_numbers(plan)]


def lora_numbers(plan: Mapping[str, Any]) -> list[str]:
    """What distinguishes an artist's LoRAs, in ids and in file names: 00, 01, …"""
    return [f"{number:02d}" for number in range(len(plan["gallery"]) + len(plan["query"]))]


def packs(artists: Sequence[str], each: int) -> dict[str, list[str]]:
    """Artists in groups of `each`, in their order; a group is called by its first artist."""
    return {artists[i]: list(artists[i : i + each]) for i in range(0, len(artists), each)}


def usable(pictures: pa.Table, alike: Collection[str]) -> list[str]:
    """Ids of the kept pictures of an artist's table, but those that are `alike` to others; in the order of their names.

    An id is a hash of bytes, which round differently on another processor where pictures are painted; a name is not.
    """
    names = pc.struct_field(pictures["image"], "path").to_pylist()
    rows = zip(pictures["status"].to_pylist(), names, pictures["picture"].to_pylist(), strict=True)
    good = sorted((name or "", picture) for status, name, picture in rows if status == "kept")
    return [picture for _, picture in good if picture not in alike]


def plan(
    kept: Mapping[str, Sequence[str]],
    genres: Mapping[str, str | None],
    settings: Mapping[str, Any],
    seed: int,
    shown: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Rows of the table "plan" for artists and their kept picture ids, which are split in the order that they come in
    (`usable` gives it by name); raises StudyError where they are too few.

    An artist's pictures are split into a gallery and a query side; no picture is on both. On each side LoRAs take
    pictures in turn from shuffled rounds, so subsets are disjoint while pictures last, and then overlap evenly;
    `overlap` is the largest share of a LoRA's pictures that another LoRA of its side also has. An artist's rows do
    not depend on the other artists.

    `shown`: picture → its subject, for ``settings["content"]``. "free": subjects play no part. "disjoint": no subject
    of any artist's gallery is one of any query. "shared": half of the artists have their galleries on one half of the
    subjects and their queries on the other, the rest the reverse, all in one order: a query's subjects are those of
    other artists' galleries, and never of its own. A picture without a subject is a subject of its own.

    With ``settings["mixtures"]``, a control, each side's pictures of all artists are shuffled and assigned at random:
    LoRAs of an "artist" then have nothing in common but chance, and nothing distinguishes them. They have no genre.
    """
    found = {artist: len(pictures) for artist, pictures in kept.items()}
    require(found, settings, "after refusing pictures that cannot be used (see the reasons in the pictures tables)")
    rngs = {artist: np.random.Generator(np.random.PCG64(derive_seed("plan", seed, artist))) for artist in kept}
    content = settings.get("content", FREE)
    if content == FREE:
        sides = {artist: _sides(pictures, settings, rngs[artist]) for artist, pictures in kept.items()}
    else:
        sides = _by_subject(kept, settings, shown or {}, content, seed)
        _require_sides(sides, settings)
    if settings.get("mixtures"):
        sides, genres = _mixed(sides, seed), dict.fromkeys(kept)
    everybody = [picture for pictures in kept.values() for picture in pictures]
    rows = []
    for artist, rng in rngs.items():
        known = everybody if settings.get("mixtures") else kept[artist]
        place = {picture: i for i, picture in enumerate(known)}
        ids = iter(lora_ids(artist, settings))
        for split, side in sides[artist].items():
            subsets = _subsets(side, settings[split], None if content == SHARED else rng)
            for number, subset in enumerate(subsets):
                others = [set(s) for i, s in enumerate(subsets) if i != number]
                lora = next(ids)
                rows.append(
                    {
                        "lora": lora,
                        "artist": artist,
                        "genre": genres[artist],
                        "split": split,
                        "seed": derive_seed("lora", seed, lora),
                        "pictures": sorted(subset, key=place.__getitem__),
                        "overlap": max((len(set(subset) & other) / len(subset) for other in others), default=0.0),
                    }
                )
    return rows


def _sides(pictures: Sequence[str], settings: Mapping[str, Any], rng: np.random.Generator) -> dict[str, list[str]]:
    """Split → an artist's pictures of that side, shuffled."""
    shuffled = [str(p) for p in rng.permutation(list(pictures))]
    cut = _cut(len(shuffled), settings)
    return {"gallery": shuffled[:cut], "query": shuffled[cut:]}


def _by_subject(
    kept: Mapping[str, Sequence[str]], settings: Mapping[str, Any], shown: Mapping[str, str], content: str, seed: int
) -> dict[str, dict[str, list[str]]]:
    """Sides whose subjects are apart, in an order of subjects that all artists have in common."""
    gallery, query = sum(settings["gallery"]), sum(settings["query"])
    share = 0.5 if content == SHARED else gallery / (gallery + query)
    turned = sorted(kept, key=lambda artist: derive_seed("plan", "content", seed, artist))
    sides = {}
    for artist, pictures in kept.items():
        place = {p: derive_seed("plan", "subject", seed, shown.get(p, p)) for p in pictures}
        order = sorted(pictures, key=place.__getitem__)
        low, high = ([p for p in order if (place[p] < share * 2**63) == first] for first in (True, False))
        if content == SHARED and turned.index(artist) % 2:
            low, high = high, low
        sides[artist] = {"gallery": low, "query": high}
    return sides


def _require_sides(sides: Mapping[str, Mapping[str, Sequence[str]]], settings: Mapping[str, Any]) -> None:
    """Raise StudyError that names all artists with too few pictures on a side."""
    short = [
        f"{artist} ({len(pictures)} for its {split} LoRAs of {max(settings[split])})"
        for artist, side in sorted(sides.items())
        for split, pictures in side.items()
        if len(pictures) < max(settings[split])
    ]
    if short:
        raise StudyError(
            f"plan.content {settings['content']}: too few pictures on a side once subjects are apart: "
            f"{', '.join(short)}; add pictures, lower plan.gallery and plan.query, or write plan.content: free"
        )


def _mixed(sides: Mapping[str, Mapping[str, Sequence[str]]], seed: int) -> dict[str, dict[str, list[str]]]:
    """The same sides with pictures assigned at random among the artists; everybody has as many as before."""
    mixed: dict[str, dict[str, list[str]]] = {artist: {} for artist in sides}
    for split in ("gallery", "query"):
        rng = np.random.Generator(np.random.PCG64(derive_seed("plan", "mixtures", seed, split)))
        pool = [str(p) for p in rng.permutation([p for side in sides.values() for p in side[split]])]
        for artist, side in sides.items():
            mixed[artist][split], pool = pool[: len(side[split])], pool[len(side[split]) :]
    return mixed


def _cut(count: int, settings: Mapping[str, Any]) -> int:
    """How many of an artist's pictures are the gallery's: in proportion to demand, and enough for each side."""
    gallery, query = sum(settings["gallery"]), sum(settings["query"])
    share = round(count * gallery / (gallery + query))
    if count >= gallery + query:  # both sides can be disjoint
        return min(max(share, gallery), count - query)
    return min(max(share, max(settings["gallery"])), count - max(settings["query"]))


def _subsets(side: Sequence[str], sizes: Sequence[int], rng: np.random.Generator | None) -> list[list[str]]:
    """One subset a size, taken in turn from rounds through `side`: shuffled, or without a generator in its order."""
    waiting: list[str] = []
    subsets = []
    for size in sizes:
        subset: list[str] = []
        while len(subset) < size:
            if not any(p not in subset for p in waiting):
                waiting += [str(p) for p in (list(side) if rng is None else rng.permutation(list(side)))]
            picked = next(p for p in waiting if p not in subset)
            waiting.remove(picked)
            subset.append(picked)
        subsets.append(subset)
    return subsets
