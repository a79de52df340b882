"""Queries: the right neighbours, p-values that mean what they say, refusals with their reason."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lora_atlas import tables
from lora_atlas.collection.chance import Chance
from lora_atlas.collection.known import Known, collections
from lora_atlas.collection.query import neighbours, query, told, vote
from lora_atlas.loras.files import open_lora
from lora_atlas.weights.gram import GramError, gram
from lora_atlas.weights.modules import module_grams
from lora_atlas.weights.sketch import read_sketch, sketch, sketch_gram, write_sketch
from lora_atlas.weights.weighting import weighted_sum

ARTISTS = ["Ada", "Ada", "Ada", "Bob", "Bob", "Bob", "Cy", "Cy", "Dan", "Eve"]
GENRES = ["still life"] * 5 + ["portrait"] * 5
NUMBERS = 24 * 2048
SMALLEST = {"exact": 2 / 6, "sketched": 2 / 7}  # p, by the families that the engine sees


def tensors(make, artist: str, seed: int, spread: float = 1.0) -> dict[str, np.ndarray]:
    """An artist's own direction and noise of the same rank."""
    found, own, rng = {}, np.random.default_rng(list(artist.encode())), np.random.default_rng(1000 + seed)
    for m, (out, width) in make.sd1().items():
        A = np.concatenate([own.normal(size=(2, width)), rng.normal(size=(2, width))])
        B = np.concatenate([own.normal(size=(out, 2)), spread * rng.normal(size=(out, 2))], 1)
        found |= {f"{m}.lora_A.weight": A.astype(np.float32), f"{m}.lora_B.weight": B.astype(np.float32)}
    return found


@pytest.fixture(scope="module")
def paths(make, tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("known")
    return [make.store(folder / f"{n}.safetensors", tensors(make, artist, n)) for n, artist in enumerate(ARTISTS)]


@pytest.fixture(scope="module")
def exact(paths) -> Known:
    names = [f"{artist}/{n}" for n, artist in enumerate(ARTISTS)]
    return Known("sd1", names, [open_lora(path) for path in paths], ARTISTS, GENRES, gram(paths, "delta"))


@pytest.fixture(scope="module")
def sketched(exact, tmp_path_factory) -> Known:
    folder, kept, found = tmp_path_factory.mktemp("sketches"), [], []
    for n, file in enumerate(exact.files):
        found.append(sketch(file, numbers=NUMBERS))
        kept.append(folder / f"{n}.safetensors")
        write_sketch(kept[-1], found[-1])
    return Known("sd1", exact.loras, exact.files, ARTISTS, GENRES, sketch_gram(found), kept, NUMBERS)


# What Ada's self-attention says counts; most of cross-attention counts little, and what is missing here nothing.
LOUD, QUIET, LEFT_OUT = 1.0, 0.05, ".attn2.to_q"


def weigh(exact: Known) -> dict[str, float]:
    return {m: LOUD if ".attn1." in m else QUIET for m in exact.shapes if LEFT_OUT not in m}


@pytest.fixture(scope="module")
def exact_weighted(exact, paths) -> Known:
    single = module_grams(paths, ["delta"])[0]["delta"]
    modules = weigh(exact)
    return replace(exact, weighted=weighted_sum(single, modules), modules=modules)


@pytest.fixture(scope="module")
def sketched_weighted(sketched, exact) -> Known:
    found, modules = [read_sketch(path) for path in sketched.sketches], weigh(exact)
    return replace(sketched, weighted=sketch_gram(found, weights=modules), modules=modules)


def answers(paths, known, **options) -> list[dict]:
    rows = query(paths, known if isinstance(known, list) else [known], **options)
    tables.table("query", rows)  # every column is there, and of its type
    return rows


@pytest.mark.parametrize("engine", ["exact", "sketched"])
def test_a_sibling_finds_its_artist(make, tmp_path, exact, sketched, engine):
    path = make.store(tmp_path / "new.safetensors", tensors(make, "Ada", 77))
    rows = answers([path], exact if engine == "exact" else sketched, nearest=10)
    assert [row["rank"] for row in rows] == list(range(1, 11)) and {row["query"] for row in rows} == {"new"}
    assert {row["artist"] for row in rows[:3]} == {"Ada"} and rows[3]["artist"] != "Ada"
    assert (np.diff([row["distance"] for row in rows]) >= 0).all()
    # of five or six families (artists' LoRAs are half alike) and one more nothing can be rarer than two in seven
    assert [row["p"] for row in rows[:3]] == [pytest.approx(SMALLEST[engine])] * 3 and rows[3]["p"] > 0.4
    assert rows[2]["cosine"] > rows[0]["chance"] > rows[3]["cosine"]
    for row in rows:
        assert row["distance"] == pytest.approx(np.sqrt(2 - 2 * row["cosine"]))
        # Bob's and Cy's among the nearest five are no nearer than chance: their number says nothing
        assert (row["artist_vote"], row["artist_share"]) == ("Ada", 1)
        assert (row["status"], row["reason"], row["relation"], row["space"]) == ("answered", None, None, "sd1")
    assert rows[0]["genre_vote"] == "still life"


def test_distances_are_those_of_dense_updates(make, tmp_path, exact):
    path = make.store(tmp_path / "new.safetensors", tensors(make, "Ada", 77))
    K = sum(gram([*(file.path for file in exact.files), path], "delta").values())
    cos = K[-1, :-1] / np.sqrt(np.diag(K)[:-1] * K[-1, -1])
    found = {row["lora"]: row["cosine"] for row in answers([path], exact, nearest=99)}
    assert [found[name] for name in exact.loras] == pytest.approx(cos.tolist(), rel=1e-9)


def test_both_engines_agree(make, tmp_path, exact, sketched):
    path = make.store(tmp_path / "new.safetensors", tensors(make, "Bob", 78))
    one, other = ({row["lora"]: row for row in answers([path], known, nearest=99)} for known in (exact, sketched))
    for name in one:
        assert one[name]["cosine"] == pytest.approx(other[name]["cosine"], abs=4 * np.sqrt(2 / NUMBERS))
    assert one["Bob/3"]["artist_vote"] == other["Bob/3"]["artist_vote"] == "Bob"


@pytest.mark.parametrize("engine", ["exact", "sketched"])
@pytest.mark.parametrize("how", ["bytes", "kohya", "fp16", "rescaled", "minus"])
def test_a_copy_is_found_at_distance_zero_and_named(make, tmp_path, exact, sketched, engine, how):
    known, original = exact if engine == "exact" else sketched, exact.files[4].path
    found, path = load_file(original), tmp_path / "copy.safetensors"
    if how == "bytes":
        shutil.copy(original, path)
    elif how == "kohya":
        make.store(path, make.kohya(found, alpha=True))
    elif how == "fp16":
        make.store(path, {k: x.astype(np.float16) for k, x in found.items()})
    else:
        factor = np.float32(0.5 if how == "rescaled" else -1)
        make.store(path, {k: x * (factor if ".lora_B." in k else 1) for k, x in found.items()})
    rows = answers([path], known, nearest=99)
    (row,) = [row for row in rows if row["relation"]]
    assert row["lora"] == exact.loras[4]
    expected = {"rescaled": "same update × 0.5", "minus": "same update × -1"}
    assert row["relation"] == expected.get(how, "same update")
    if how == "minus":
        assert row["distance"] == pytest.approx(2) and row["rank"] == 10
    else:
        assert row["distance"] < 1e-3 and row["rank"] == 1 and row["p"] == pytest.approx(SMALLEST[engine])


def test_a_copy_is_found_where_another_file_makes_sketches_small(make, tmp_path):
    """A sketch has as many numbers for one module as for a thousand: the products of a pair are at the smaller of their
    sizes, and so are the squares that they are held against."""
    few = [module for module in make.sd1() if ".attn2.to_k" in module][:2]
    paths = [
        make.store(
            tmp_path / f"{n}.safetensors",
            {key: x for key, x in tensors(make, artist, n).items() if n == 9 or key.startswith(tuple(few))},
        )
        for n, artist in enumerate(ARTISTS)
    ]
    files, found = [open_lora(path) for path in paths], []
    for n, file in enumerate(files):
        found.append(sketch(file, numbers=24 * 64))
        write_sketch(tmp_path / f"{n}.sketch", found[-1])
    kept = [tmp_path / f"{n}.sketch" for n in range(10)]
    known = Known("sd1", ARTISTS, files, ARTISTS, GENRES, sketch_gram(found), kept, 24 * 64)
    assert found[9].D < found[0].D / 4
    for n in range(9):
        copy = make.store(tmp_path / "copy.safetensors", load_file(paths[n]), {"name": "another"})
        first = answers([copy], known, nearest=99)[0]
        assert first["relation"] == "same update" and first["distance"] < 1e-3
        assert all(abs(row["cosine"]) < 1 + 1e-9 for row in answers([copy], known, nearest=99))


def test_a_subset_of_components_and_blocks_is_asked_for_alone(make, tmp_path, exact, sketched):
    """Self-attention of one artist, all else of another."""
    one, other = tensors(make, "Ada", 5), tensors(make, "Cy", 6)
    path = make.store(tmp_path / "new.safetensors", {k: one[k] if ".attn1." in k else other[k] for k in one})
    for known in (exact, sketched):
        assert answers([path], known, components=["self_attention"])[0]["artist"] == "Ada"
        assert answers([path], known, components=["cross_attention"], blocks=["up"])[0]["artist"] == "Cy"
    half = {k: x * (".attn1." in k or ".lora_A." in k) for k, x in one.items()}
    for known in (exact, sketched):
        (row,) = answers([make.store(tmp_path / "half.safetensors", half)], known, components=["cross_attention"])
        assert row["status"] == "refused"
        assert "its update is zero (in the components and blocks asked for)" in row["reason"]
    few = make.store(tmp_path / "few.safetensors", {k: x for k, x in one.items() if ".attn2." in k})
    for known in (exact, sketched):
        (row,) = answers([few], known, components=["self_attention"])
        assert "its update is zero" in row["reason"]
        assert answers([few], known)[0]["artist"] == "Ada"


def test_a_file_that_several_families_could_have_made_is_refused_with_that_reason(make, tmp_path, exact):
    """Self-attention alone has the same shapes in SD1.x and SD2.x."""
    path = make.lora(tmp_path / "x.safetensors", make.sd1(attentions=("attn1",)), 0)
    (row,) = answers([path], exact)
    assert row["status"] == "refused" and "it changes modules that SD1.x, SD2.x have in common" in row["reason"]


def test_a_file_without_a_common_module_is_refused_with_that_reason(make, tmp_path, exact):
    shapes = {"unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k": (1280, 768)}
    (row,) = answers([make.lora(tmp_path / "x.safetensors", shapes, 0)], exact)
    assert row["status"] == "refused" and "a LoRA of SD1.x" in row["reason"] and "no modules in common" in row["reason"]


# --- modules that do not count alike


def test_weighted_cosines_are_those_of_dense_updates_that_are_weighted(make, tmp_path, exact, exact_weighted):
    path = make.store(tmp_path / "new.safetensors", tensors(make, "Ada", 77))
    single = module_grams([*(file.path for file in exact.files), path], ["delta"])[0]["delta"]
    modules = exact_weighted.modules
    K = sum(modules.get(m, 0.0) * each for m, each in single.items())
    cos = K[-1, :-1] / np.sqrt(np.diag(K)[:-1] * K[-1, -1])
    found = {row["lora"]: row for row in answers([path], exact_weighted, nearest=99)}
    assert [found[name]["cosine"] for name in exact.loras] == pytest.approx(cos.tolist(), rel=1e-9)
    plain = {row["lora"]: row for row in answers([path], exact, nearest=99)}
    assert any(abs(plain[name]["cosine"] - found[name]["cosine"]) > 1e-3 for name in exact.loras)
    for row in found.values():
        assert row["distance"] == pytest.approx(np.sqrt(2 - 2 * row["cosine"]))
    # p-values are of distances of the same kind among the known
    p = Chance(K[:-1, :-1] / np.sqrt(np.outer(*[np.diag(K)[:-1]] * 2)), ARTISTS).p(cos)
    assert [found[name]["p"] for name in exact.loras] == pytest.approx(p.tolist())


def test_both_engines_agree_on_weighted_modules(make, tmp_path, exact_weighted, sketched_weighted):
    path = make.store(tmp_path / "new.safetensors", tensors(make, "Bob", 78))
    both = (exact_weighted, sketched_weighted)
    one, other = ({row["lora"]: row for row in answers([path], known, nearest=99)} for known in both)
    for name in one:
        assert one[name]["cosine"] == pytest.approx(other[name]["cosine"], abs=8 * np.sqrt(2 / NUMBERS))
    assert one["Bob/3"]["artist_vote"] == other["Bob/3"]["artist_vote"] == "Bob"


@pytest.mark.parametrize("engine", ["exact", "sketched"])
def test_the_modules_that_count_decide_who_is_near(
    make, tmp_path, exact, sketched, exact_weighted, sketched_weighted, engine
):
    """Self-attention of one artist, cross-attention, louder, of another."""
    one, other = tensors(make, "Ada", 50), tensors(make, "Cy", 60)
    mixed = {k: one[k] if ".attn1." in k else 2 * other[k] for k in one}
    path = make.store(tmp_path / "new.safetensors", mixed)
    plain, weighted = (exact, exact_weighted) if engine == "exact" else (sketched, sketched_weighted)
    assert answers([path], plain)[0]["artist"] == "Cy"
    assert answers([path], weighted)[0]["artist"] == "Ada"
    assert answers([path], weighted, components=["cross_attention"])[0]["artist"] == "Cy"  # the subset that is asked


@pytest.mark.parametrize("engine", ["exact", "sketched"])
@pytest.mark.parametrize("factor", [1.0, -0.5])
def test_a_copy_keeps_its_relation_where_modules_are_weighted(
    make, tmp_path, exact, exact_weighted, sketched_weighted, engine, factor
):
    known, original = exact_weighted if engine == "exact" else sketched_weighted, exact.files[4].path
    found = {k: x * np.float32(factor if ".lora_B." in k else 1) for k, x in load_file(original).items()}
    rows = answers([make.store(tmp_path / "copy.safetensors", found)], known, nearest=99)
    (row,) = [row for row in rows if row["relation"]]
    assert row["lora"] == exact.loras[4]
    assert row["relation"] == ("same update" if factor == 1 else "same update × -0.5")
    assert row["distance"] == pytest.approx(0 if factor > 0 else 2, abs=1e-3)


@pytest.mark.parametrize("engine", ["exact", "sketched"])
def test_what_is_alike_only_in_modules_that_count_is_no_copy(
    make, tmp_path, exact, exact_weighted, sketched_weighted, engine
):
    """Whether two are the same update is asked of all modules as they are."""
    known = exact_weighted if engine == "exact" else sketched_weighted
    found, other = load_file(exact.files[4].path), tensors(make, "Eve", 500)
    changed = {k: other[k] if LEFT_OUT in k else x for k, x in found.items()}
    assert any((changed[k] != x).any() for k, x in found.items())
    rows = answers([make.store(tmp_path / "near.safetensors", changed)], known, nearest=99)
    assert rows[0]["lora"] == exact.loras[4] and rows[0]["distance"] < 1e-3
    assert {row["relation"] for row in rows} == {None}


def test_a_file_of_modules_without_weight_is_refused_with_what_to_do(
    make, tmp_path, exact, exact_weighted, sketched_weighted
):
    few = {k: x for k, x in tensors(make, "Ada", 50).items() if LEFT_OUT in k}
    wide = {k: 0 * x for k, x in tensors(make, "Ada", 50).items() if LEFT_OUT not in k}  # tells the base by its shapes
    path = make.store(tmp_path / "few.safetensors", few | wide)
    for known in (exact_weighted, sketched_weighted):
        (row,) = answers([path], known)
        assert row["status"] == "refused"
        assert "only modules that have no weight" in row["reason"] and "weights.modules: [plain]" in row["reason"]
    assert answers([path], exact)[0]["artist"] == "Ada"


def test_neighbours_are_near_by_the_weighted_modules(exact, exact_weighted):
    rows = neighbours(exact_weighted, nearest=99)
    tables.table("neighbours", rows)
    K = sum(exact_weighted.weighted.values())
    cos = K / np.sqrt(np.outer(np.diag(K), np.diag(K)))
    place = {lora: n for n, lora in enumerate(exact.loras)}
    for row in rows:
        assert row["cosine"] == pytest.approx(cos[place[row["lora"]], place[row["neighbour"]]], rel=1e-9)
    plain = {(row["lora"], row["neighbour"]): row["cosine"] for row in neighbours(exact, nearest=99)}
    assert any(abs(row["cosine"] - plain[row["lora"], row["neighbour"]]) > 1e-3 for row in rows)


# --- what is refused


def test_a_file_of_another_base_is_refused_with_what_it_is_and_what_there_is(make, tmp_path, exact):
    xl = {f"unet.down_blocks.1.attentions.0.transformer_blocks.{n}.attn2.to_k": (640, 2048) for n in (0, 1)}
    flux = {"transformer.single_transformer_blocks.0.attn.to_q": (3072, 3072)}
    for shapes, name in ((xl, "SDXL"), (flux, "FLUX"), ({"unet.conv_in": (5, 5)}, "a base that cannot be told")):
        (row,) = answers([make.lora(tmp_path / "x.safetensors", shapes, 0, rank=1)], exact)
        assert row["status"] == "refused" and f"a LoRA of {name}" in row["reason"] and "sd1 (SD1.x)" in row["reason"]
        assert "different bases cannot be compared" in row["reason"]
        assert row["rank"] is None and row["sha256"]
    (row,) = answers([tmp_path / "x.safetensors"], [])
    assert "the known LoRAs are of: none" in row["reason"]


@pytest.mark.fault(
    "LoRA files", "one of the files that are asked about is damaged", "a row with the reason; the others are answered"
)
def test_one_bad_query_costs_no_other_anything(make, tmp_path, exact):
    good = make.store(tmp_path / "in" / "good.safetensors", tensors(make, "Ada", 9))
    (tmp_path / "in" / "cut.safetensors").write_bytes(good.read_bytes()[:-9])
    make.store(tmp_path / "in" / "zero.safetensors", {k: 0 * x for k, x in load_file(good).items()})
    rows = answers([tmp_path / "in"], exact, nearest=2)
    found = {row["query"]: row for row in rows}
    assert found["good"]["status"] == "answered" and sum(row["query"] == "good" for row in rows) == 2
    assert "damaged" in found["cut"]["reason"] and "update is zero" in found["zero"]["reason"]
    assert not any(str(tmp_path) in (row["reason"] or "") for row in rows)  # the table is handed on
    assert (tmp_path / "absent.safetensors").exists() is False
    (row,) = answers([tmp_path / "absent.safetensors"], exact)
    assert row["status"] == "refused" and "no such file" in row["reason"] and str(tmp_path) not in row["reason"]


def test_the_right_collection_is_asked(make, tmp_path, exact):
    shapes = {f"unet.down_blocks.1.attentions.0.transformer_blocks.{n}.attn2.to_k": (640, 2048) for n in (0, 1)}
    files = [make.lora(tmp_path / f"{n}.safetensors", shapes, n) for n in range(3)]
    xl = Known("sdxl", ["a", "b", "c"], [open_lora(p) for p in files], [None] * 3, [None] * 3, gram(files, "delta"))
    assert {row["space"] for row in answers([files[1], exact.files[0].path], [exact, xl])} == {"sd1", "sdxl"}
    shutil.copy(files[1], tmp_path / "copy.safetensors")
    row = answers([tmp_path / "copy.safetensors"], [exact, xl])[0]
    assert row["lora"] == "b" and row["relation"] == "same update" and row["artist_vote"] is None


def test_a_file_among_the_known_ones_is_no_neighbour_of_itself(make, tmp_path, exact):
    rows = answers([exact.files[4].path], exact, nearest=99)
    assert exact.loras[4] not in {row["lora"] for row in rows} and len(rows) == len(exact.loras) - 1
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    alone = Known("sd1", ["a"], exact.files[:1], [None], [None], gram([exact.files[0].path], "delta"))
    (row,) = answers([exact.files[0].path], alone)
    assert row["status"] == "refused" and "there is nothing to compare it with" in row["reason"]


def test_p_of_a_file_among_the_known_ones_is_that_of_the_table(exact):
    table = {(row["lora"], row["neighbour"]): row["p"] for row in neighbours(exact)}
    rows = answers([exact.files[4].path], exact)
    for row in rows:
        assert row["p"] == table[exact.loras[4], row["lora"]]
        assert row["p"] >= 2 / (1 + Chance(cosines(exact), ARTISTS).count(4)) - 1e-9


def cosines(known: Known) -> np.ndarray:
    K = sum(known.grams.values())
    return K / np.sqrt(np.outer(np.diag(K), np.diag(K)))


def test_the_opposite_of_a_known_one_is_told_however_far_it_is(make, tmp_path, exact):
    turned = {key: -x if ".lora_B." in key else x for key, x in load_file(exact.files[4].path).items()}
    path = make.store(tmp_path / "turned.safetensors", turned)
    *near, last = answers([path], exact, nearest=3)
    assert [row["rank"] for row in near] == [1, 2, 3] and {row["relation"] for row in near} == {None}
    assert (last["lora"], last["relation"], last["rank"]) == (exact.loras[4], "same update × -1", len(exact.loras))
    assert "same update × -1" in told([*near, last])


def test_a_sketch_that_is_gone_is_made_again_for_a_query(make, tmp_path, sketched):
    path = make.store(tmp_path / "new.safetensors", tensors(make, "Ada", 77))
    whole = answers([path], sketched)
    gone = replace(sketched, sketches=[*sketched.sketches[:2], tmp_path / "gone", *sketched.sketches[3:]])
    assert answers([path], gone) == whole


# --- what the neighbours say


def test_a_vote_counts_evidence_and_not_heads():
    """One neighbour at .64 and four at chance: four heads of another artist are no evidence."""
    labels = ["filip", "otto", "otto", "otto", None, "filip"]
    assert vote("artist", labels, np.array([0.6, 0, 0, 0, 0.3, 0])) == {"artist_vote": "filip", "artist_share": 1.0}
    assert vote("artist", labels, np.array([0.6, 0.1, 0.1, 0, 0, 0.2])) == {
        "artist_vote": "filip", "artist_share": pytest.approx(0.8),
    }  # fmt: skip
    nothing = {"artist_vote": None, "artist_share": None}
    assert vote("artist", labels, np.zeros(6)) == vote("artist", [None] * 6, np.ones(6)) == nothing


def test_an_unrelated_query_has_no_vote_and_is_told_so(make, tmp_path, exact):
    path = make.lora(tmp_path / "x.safetensors", make.sd1(), 4242, rank=4)
    rows = answers([path], exact)
    assert rows[0]["p"] > 0.2 and {row["artist_vote"] for row in rows} == {None}
    assert "none is nearer than chance (cosine 0.0" in told(rows)


def test_checkpoints_that_hardly_differ_are_nearly_the_same(make, tmp_path, exact, sketched):
    found, rng = load_file(exact.files[4].path), np.random.default_rng(5)
    near = {k: (x * (1 + 2e-3 * rng.normal(size=x.shape))).astype(np.float32) for k, x in found.items()}
    path = make.store(tmp_path / "later.safetensors", near)
    for known in (exact, sketched):
        rows = answers([path], known)
        assert [row["relation"] for row in rows] == ["nearly the same"] + [None] * 9
        assert rows[0]["distance"] == pytest.approx(2e-3 * np.sqrt(2), rel=0.3)
    assert "nearly the same" in told(rows)


def test_results_of_a_folder_are_told_where_the_folder_is(tmp_path):
    (tmp_path / "tables").mkdir()
    tables.write(tmp_path / "tables" / "loras.parquet", "loras", [])
    with pytest.raises(GramError, match=r"do not say where it is; name it \(folder=…\)"):
        collections(tmp_path)


# --- neighbours of the known


def test_neighbours_are_the_nearest_others_each_out_of_its_own_null(exact):
    rows = neighbours(exact, nearest=3)
    tables.table("neighbours", rows)
    assert len(rows) == 3 * len(ARTISTS)
    K = sum(exact.grams.values())
    chance = Chance(K / np.sqrt(np.outer(np.diag(K), np.diag(K))), ARTISTS)
    for row in rows:
        own = row["lora"].split("/")[0]
        assert row["lora"] != row["neighbour"] and row["artist"] == row["neighbour"].split("/")[0]
        if row["rank"] < ARTISTS.count(own):
            assert row["artist"] == own
            # held against all that are not of its family
            assert row["p"] == pytest.approx(2 / (1 + chance.count(exact.loras.index(row["lora"]))))
    assert [row["rank"] for row in rows[:3]] == [1, 2, 3]
    grams = gram([exact.files[0].path], "delta")
    assert neighbours(Known("x", exact.loras[:1], exact.files[:1], ["A"], [None], grams)) == []


def test_a_part_that_a_base_does_not_have_is_named_with_the_base(exact):
    with pytest.raises(
        GramError, match=r"LoRAs of sd1: weights.components: \['joint_attention'\] are not in these LoRAs"
    ):
        neighbours(exact, components=["joint_attention"])


def test_copies_take_no_place_of_others(make, tmp_path, exact):
    """Twelve copies of one LoRA: it has its other neighbours, and its relatives have each other."""
    copied = [make.store(tmp_path / f"{n:02d}.safetensors", load_file(exact.files[4].path)) for n in range(12)]
    paths = [*(file.path for file in exact.files), *copied]
    names = [*exact.loras, *(f"copy {n}" for n in range(12))]
    labels = [*ARTISTS, *[ARTISTS[4]] * 12]
    known = Known("sd1", names, [open_lora(path) for path in paths], labels, labels, gram(paths, "delta"))
    rows = neighbours(known, nearest=3)
    for lora in (exact.loras[4], *(name for name, a in zip(exact.loras, ARTISTS, strict=True) if a == ARTISTS[4])):
        mine = [row for row in rows if row["lora"] == lora]
        same = {exact.loras[4], *names[len(exact.loras) :]}
        others = [row["neighbour"] for row in mine if row["neighbour"] not in same]
        assert len(others) >= 2 and len(mine) <= 6, (lora, mine)
        assert [row["distance"] for row in mine] == sorted(row["distance"] for row in mine)
    # The rank is the place among all others.
    last = [row for row in rows if row["lora"] == exact.loras[4]][-1]
    assert last["rank"] > 12
