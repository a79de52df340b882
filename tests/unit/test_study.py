"""The plan of a study: two sides that share nothing, subsets that are disjoint while they can be, seeds that stay."""

import subprocess
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_atlas import tables
from lora_atlas.seeds import derive_seed
from lora_atlas.study import StudyError, lora_ids, needed, packs, plan, subjects, too_few, usable

WORKFLOW = Path(__file__).parents[2] / "workflow"
DEMO = {"gallery": [8, 8, 8, 4], "query": [8, 3]}


def ids(count: int, name: str = "") -> list[str]:
    return [sha256(f"{name}{n}".encode()).hexdigest() for n in range(count)]


def plan_one(count: int, sizes: dict, seed: int = 0) -> list[dict]:
    rows = plan({"ada": ids(count)}, {"ada": None}, sizes, seed)
    tables.table("plan", rows)  # every column, nothing else
    return rows


def side(rows: list[dict], split: str) -> list[dict]:
    return [row for row in rows if row["split"] == split]


def used(rows: list[dict]) -> Counter[str]:
    return Counter(picture for row in rows for picture in row["pictures"])


SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=5)


@st.composite
def studies(draw) -> tuple[dict, int, int]:
    """Sizes of LoRAs, an artist's number of pictures (enough of them, often only just), a seed."""
    sizes = {"gallery": draw(SIZES), "query": draw(SIZES)}
    return sizes, needed(sizes) + draw(st.integers(0, 60)), draw(st.integers(0, 2**40))


# --- pictures


@settings(deadline=None, max_examples=100)
@given(studies())
def test_no_picture_is_on_both_sides_and_every_lora_has_its_size(study):
    sizes, count, seed = study
    rows = plan_one(count, sizes, seed)
    assert [row["split"] for row in rows] == ["gallery"] * len(sizes["gallery"]) + ["query"] * len(sizes["query"])
    assert [len(row["pictures"]) for row in rows] == sizes["gallery"] + sizes["query"]
    assert all(len(set(row["pictures"])) == len(row["pictures"]) for row in rows)
    assert not used(side(rows, "gallery")).keys() & used(side(rows, "query")).keys()
    assert used(rows).keys() <= set(ids(count))


@settings(deadline=None, max_examples=100)
@given(studies())
def test_loras_are_disjoint_where_there_are_pictures_for_it_and_else_share_them_evenly(study):
    sizes, count, seed = study
    rows = plan_one(count, sizes, seed)
    wanted = sum(sizes["gallery"]) + sum(sizes["query"])
    assert len(used(rows)) == min(count, wanted)  # none is left over where some serve twice
    assert ({row["overlap"] for row in rows} == {0.0}) == (count >= wanted)
    # No picture of a side serves a second time before all of its pictures have served, and so on.
    for split in sizes:
        times = used(side(rows, split)).values()
        assert max(times) - min(times) <= 1


@pytest.mark.parametrize(("count", "overlapping"), [(39, set()), (38, {"gallery"}), (28, {"gallery", "query"})])
def test_the_demo_is_disjoint_with_39_pictures_an_artist(count, overlapping):
    rows = plan_one(count, DEMO)
    assert {row["split"] for row in rows if row["overlap"] > 0} == overlapping


@settings(deadline=None, max_examples=100)
@given(studies())
def test_the_overlap_is_the_largest_share_that_one_other_lora_of_the_side_has(study):
    sizes, count, seed = study
    rows = plan_one(count, sizes, seed)
    for row in rows:
        shares = [0.0]
        for other in rows:
            if other["lora"] != row["lora"] and other["split"] == row["split"]:
                both = sum(picture in other["pictures"] for picture in row["pictures"])
                shares.append(both / len(row["pictures"]))
        assert row["overlap"] == max(shares)


def test_overlap_where_every_lora_takes_every_picture_is_one():
    rows = plan_one(6, {"gallery": [4, 4, 2], "query": [2]})
    assert [row["overlap"] for row in rows] == [1, 1, 1, 0]
    assert rows[0]["pictures"] == rows[1]["pictures"]


def test_the_fewest_pictures_are_just_enough():
    sizes = {"gallery": [2, 7], "query": [1, 4]}
    assert needed(sizes) == 11
    rows = plan_one(11, sizes)
    assert len(used(side(rows, "gallery"))) == 7 and len(used(side(rows, "query"))) == 4
    with pytest.raises(StudyError):
        plan_one(10, sizes)


def test_spare_pictures_are_divided_by_demand():
    # With three times as many pictures as are needed, each is used in about a third of the plans, on either side.
    sizes = {"gallery": [3, 3], "query": [2]}
    times = sum((used(plan_one(24, sizes, seed)) for seed in range(200)), Counter())
    assert len(times) == 24 and min(times.values()) > 200 / 3 * 0.6 and max(times.values()) < 200 / 3 * 1.4


# --- what a plan depends on


def listed(pictures: list[tuple[str, str | None]], refused: list[str] = ()) -> pa.Table:
    """A table of pictures of one artist: ids, and the names that they came by."""
    return tables.table(
        "pictures",
        [
            {
                "picture": picture, "artist": "ada", "genre": None, "width": 1, "height": 1, "source": "s",
                "image": {"bytes": b"", "path": name}, "licence": None, "subject": None, "reason": None,
                "status": "refused" if picture in refused else "kept",
            }
            for picture, name in pictures
        ],
    )  # fmt: skip


def test_usable_pictures_come_in_the_order_of_their_names():
    rows = [("id0", "c.png"), ("id3", "a.png"), ("id1", "b.png"), ("id2", "d.png"), ("id9", "0.png")]
    assert usable(listed(rows), []) == ["id9", "id3", "id1", "id0", "id2"]
    assert usable(listed(rows, ["id3", "id9"]), {"id0", "x"}) == ["id1", "id2"]
    assert usable(listed([("b", None), ("a", None), ("c", "x")]), []) == ["a", "b", "c"]  # those without one: by id
    assert usable(listed([]), []) == []


@settings(deadline=None, max_examples=50)
@given(studies(), st.randoms(use_true_random=False))
def test_other_bytes_of_the_same_named_pictures_change_nothing(study, random):
    """Their ids are hashes, which differ on another processor; the rows of their table may come in any order."""
    sizes, count, seed = study
    names = [f"{n:03}.png" for n in range(count)]
    found = []
    for kind in "ab":
        rows = list(zip(ids(count, kind), names, strict=True))
        random.shuffle(rows)
        made = plan({"ada": usable(listed(rows), [])}, {"ada": None}, sizes, seed)
        name = dict(rows)
        found.append([row | {"pictures": [name[picture] for picture in row["pictures"]]} for row in made])
    assert found[0] == found[1]
    assert all(row["pictures"] == sorted(row["pictures"]) for row in found[0])


def test_the_given_order_of_the_pictures_decides():
    forwards, backwards = (plan({"ada": order}, {"ada": None}, DEMO, 0) for order in (ids(39), ids(39)[::-1]))
    assert [set(row["pictures"]) for row in forwards] != [set(row["pictures"]) for row in backwards]
    place = {picture: n for n, picture in enumerate(ids(39))}
    for row in forwards:
        assert [place[p] for p in row["pictures"]] == sorted(place[p] for p in row["pictures"])


@settings(deadline=None, max_examples=50)
@given(studies(), st.permutations(["ada", "bob", "cy"]))
def test_an_artists_rows_do_not_depend_on_other_artists(study, names):
    sizes, count, seed = study
    genres = {"ada": "a", "bob": None, "cy": "c"}
    kept = {name: ids(count + 3 * n, name) for n, name in enumerate(sorted(genres))}
    rows = plan({name: kept[name] for name in names}, genres, sizes, seed)
    tables.table("plan", rows)
    assert list(dict.fromkeys(row["artist"] for row in rows)) == names
    for name in names:
        alone = plan({name: kept[name]}, genres, sizes, seed)
        assert [row for row in rows if row["artist"] == name] == alone
        assert {row["genre"] for row in alone} == {genres[name]}


def test_artists_with_the_same_pictures_divide_them_in_their_own_ways():
    pictures = ids(39)
    rows = plan({"ada": pictures, "bob": pictures}, {"ada": None, "bob": None}, DEMO, 0)
    assert [r["pictures"] for r in rows if r["artist"] == "ada"] != [
        r["pictures"] for r in rows if r["artist"] == "bob"
    ]


def test_the_seed_of_the_study_decides_pictures_and_seeds():
    one, same, other = (plan_one(39, DEMO, seed) for seed in (0, 0, 1))
    assert one == same
    for a, b in zip(one, other, strict=True):
        assert a["pictures"] != b["pictures"] and a["seed"] != b["seed"]


def test_a_lora_more_leaves_the_seeds_of_the_others():
    seeds = {row["lora"]: row["seed"] for row in plan_one(60, DEMO)}
    more = {row["lora"]: row["seed"] for row in plan_one(60, DEMO | {"query": [8, 3, 3]})}
    assert seeds.items() < more.items()


def test_every_lora_has_an_id_and_a_seed_of_its_own():
    names = [f"artist-{n}" for n in range(20)]
    rows = plan({name: ids(39, name) for name in names}, dict.fromkeys(names), DEMO, 3)
    assert [row["lora"] for row in rows] == [lora for name in names for lora in lora_ids(name, DEMO)]
    assert len({row["lora"] for row in rows}) == len({row["seed"] for row in rows}) == 20 * 6
    assert all(row["seed"] == derive_seed("lora", 3, row["lora"]) for row in rows)


def test_ids_of_loras_count_through_both_sides():
    assert lora_ids("ada", {"gallery": [1, 1], "query": [1]}) == ["ada/00", "ada/01", "ada/02"]
    many = lora_ids("ada", {"gallery": [1] * 100, "query": [1] * 5})
    assert many[99:101] == ["ada/99", "ada/100"] and len(set(many)) == 105


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text("abc", min_size=1), unique=True, max_size=12), st.integers(1, 5))
def test_packs_hold_every_artist_once_in_order_and_are_called_by_their_first(artists, each):
    found = packs(artists, each)
    assert [artist for pack in found.values() for artist in pack] == artists
    assert all(name == pack[0] and len(pack) <= each for name, pack in found.items())
    assert sum(len(pack) < each for pack in found.values()) <= 1


# --- too few pictures


def test_every_artist_with_too_few_pictures_is_named_with_its_count_in_one_sentence():
    counts = {"zoe": 10, "bob": 0, "ada": 16, "cy": 15}
    (problem,) = too_few(counts, DEMO)
    assert "too few pictures: bob (0), cy (15), zoe (10); each artist needs 16" in problem
    assert "8 + 8" in problem and "ada" not in problem
    assert "plan.gallery" in problem and "plan.query" in problem and "pictures.artists" in problem


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(0, 12), max_size=6), SIZES, SIZES)
def test_a_plan_is_refused_where_and_only_where_an_artist_is_named(counts, gallery, query):
    sizes = {"gallery": gallery, "query": query}
    kept = {name: ids(count, name) for name, count in counts.items()}
    problems = too_few(counts, sizes)
    short = [name for name, count in counts.items() if count < max(gallery) + max(query)]
    if not short:
        assert problems == [] and len(plan(kept, dict.fromkeys(kept), sizes, 0)) == len(kept) * len(gallery + query)
        return
    with pytest.raises(StudyError) as caught:
        plan(kept, dict.fromkeys(kept), sizes, 0)
    assert problems[0] in str(caught.value) and "after refusing pictures" in str(caught.value)
    listed = problems[0].split(": ")[2].split(";")[0]
    assert listed == ", ".join(f"{name} ({counts[name]})" for name in sorted(short))


# --- seeds


def test_derived_seeds_never_change():
    """A study is rerun years later: this number must stay, and so must the recipe behind it."""
    assert derive_seed("plan", 0, "monet") == 4165829030131736486
    digest = sha256(b'["lora", 7, "\\u00e9dith/00"]').digest()
    assert derive_seed("lora", 7, "édith/00") == int.from_bytes(digest[:8], "big") // 2


def test_a_plan_never_changes():
    rows = plan({"monet": [f"p{n:02}" for n in range(12)]}, {"monet": None}, {"gallery": [3, 2], "query": [3]}, 0)
    assert [row["pictures"] for row in rows] == [["p07", "p09", "p10"], ["p02", "p11"], ["p01", "p03", "p08"]]


def test_seeds_are_the_same_in_another_process():
    code = "from lora_atlas.seeds import derive_seed; print(derive_seed('clustering', 'k-means', 3))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(WORKFLOW), "PYTHONHASHSEED": "99"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) == derive_seed("clustering", "k-means", 3)


PARTS = st.lists(st.integers(-(2**70), 2**70) | st.text(max_size=8) | st.booleans() | st.none(), max_size=4)


@settings(deadline=None, max_examples=100)
@given(PARTS, PARTS)
def test_seeds_fit_every_generator_and_tell_their_parts_apart(one, other):
    seed = derive_seed(*one)
    assert 0 <= seed < 2**63  # an int64 column and a NumPy, PyTorch or Python generator all take it
    np.random.Generator(np.random.PCG64(seed))
    kinds = [[(type(part), part) for part in parts] for parts in (one, other)]
    assert (seed == derive_seed(*other)) == (kinds[0] == kinds[1])


def test_parts_that_print_alike_give_different_seeds():
    alike = [("a", 1), ("a", "1"), ("a1",), ("a", 1, ""), ("a", [1]), (["a", 1],), ("a", 1.0), ("a", True)]
    assert len({derive_seed(*parts) for parts in alike}) == len(alike)


# --- mixtures


def test_mixtures_deal_all_pictures_anew_and_keep_the_sides_apart():
    names = [f"artist{n}" for n in range(6)]
    kept = {name: ids(20, name) for name in names}
    genres = dict.fromkeys(names, "genre")
    sizes = {"gallery": [5, 5], "query": [5]}
    apart, mixed = (plan(kept, genres, sizes | {"mixtures": mix}, 0) for mix in (False, True))
    assert [row["lora"] for row in mixed] == [row["lora"] for row in apart]
    assert {row["genre"] for row in mixed} == {None}
    by_split = {
        split: {p for row in mixed if row["split"] == split for p in row["pictures"]} for split in ("gallery", "query")
    }
    assert not by_split["gallery"] & by_split["query"]
    for split, pictures in by_split.items():  # what was an artist's gallery side stays on the gallery side
        assert not pictures & {p for row in apart if row["split"] != split for p in row["pictures"]}
    home = {picture: name for name, pictures in kept.items() for picture in pictures}
    assert all(len({home[p] for p in row["pictures"]}) > 1 for row in mixed)
    of_artist = {name: {p for row in mixed if row["artist"] == name for p in row["pictures"]} for name in names}
    assert sum(map(len, of_artist.values())) == len(set.union(*of_artist.values()))  # no picture has two owners
    assert mixed == plan(kept, genres, sizes | {"mixtures": True}, 0)


def test_mixtures_go_by_the_given_order_and_not_by_hashes():
    names = [f"artist{n}" for n in range(6)]
    sizes = {"gallery": [5, 5], "query": [5], "mixtures": True}
    found = []
    for kind in "ab":
        kept = {name: ids(20, f"{kind}{name}") for name in names}
        place = {picture: (name, n) for name, pictures in kept.items() for n, picture in enumerate(pictures)}
        rows = plan(kept, dict.fromkeys(names), sizes, 0)
        found.append([row | {"pictures": [place[picture] for picture in row["pictures"]]} for row in rows])
    assert found[0] == found[1]
    assert all(row["pictures"] == sorted(row["pictures"]) for row in found[0])


# --- subjects

HOUSES = {f"house{h}": [f"house{h}-{n:02}" for n in range(40)] for h in range(6)}
SHOWN = {picture: picture.split("-")[1] for pictures in HOUSES.values() for picture in pictures}
OF_HOUSES = {"gallery": [6, 6], "query": [5]}


def subjects_of(rows, split, houses=HOUSES) -> dict[str, set[str]]:
    found = {house: set() for house in houses}
    for row in rows:
        if row["split"] == split:
            found[row["artist"]] |= {SHOWN.get(picture, picture) for picture in row["pictures"]}
    return found


def with_content(content, houses=HOUSES, seed=0, sizes=OF_HOUSES):
    return plan(houses, dict.fromkeys(houses), {**sizes, "content": content}, seed, SHOWN)


@pytest.mark.parametrize("seed", range(5))
def test_disjoint_no_subject_of_any_gallery_is_one_of_any_query(seed):
    rows = with_content("disjoint", seed=seed)
    gallery, query = (set.union(*subjects_of(rows, split).values()) for split in ("gallery", "query"))
    assert gallery and query and not gallery & query
    assert [len(row["pictures"]) for row in rows] == [6, 6, 5] * 6
    # An artist chooses among the subjects of a side by itself.
    assert len({tuple(sorted(each)) for each in subjects_of(rows, "query").values()}) > 1


@pytest.mark.parametrize("seed", range(5))
def test_shared_a_query_s_subjects_are_other_artists_gallery_s_and_never_its_own(seed):
    rows = with_content("shared", seed=seed)
    gallery, query = subjects_of(rows, "gallery"), subjects_of(rows, "query")
    for house, asked in query.items():
        assert not asked & gallery[house]
        others = [other for other in HOUSES if asked <= gallery[other]]
        assert len(others) == 3  # the half of the houses that is turned round
    assert len({tuple(sorted(each)) for each in query.values()}) == 2


def test_free_subjects_play_no_part():
    plain = plan(HOUSES, dict.fromkeys(HOUSES), OF_HOUSES, 0)
    assert with_content("free") == plain


def test_pictures_without_a_subject_are_subjects_of_their_own():
    houses = {"ada": [f"a{n}" for n in range(40)], "bob": [f"b{n}" for n in range(40)]}
    rows = plan(houses, dict.fromkeys(houses), {**OF_HOUSES, "content": "disjoint"}, 0)
    assert not used(side(rows, "gallery")).keys() & used(side(rows, "query")).keys()


def test_a_side_that_is_too_small_once_subjects_are_apart_is_named():
    """Forty pictures of one subject have one side."""
    houses = {**HOUSES, "mono": [f"mono-{n}" for n in range(40)]}
    shown = {**SHOWN, **dict.fromkeys(houses["mono"], "cat")}
    with pytest.raises(StudyError, match=r"plan\.content disjoint: too few .*: mono \(0 for its (gallery|query) LoRAs"):
        plan(houses, dict.fromkeys(houses), {**OF_HOUSES, "content": "disjoint"}, 0, shown)


def test_subjects_are_those_of_kept_pictures_whose_source_says_them():
    rows = listed([("a", "a.png"), ("b", "b.png"), ("c", "c.png")], ["b"]).to_pylist()
    rows[0]["subject"] = rows[1]["subject"] = "cat"
    assert subjects([tables.table("pictures", rows)]) == {"a": "cat"}
