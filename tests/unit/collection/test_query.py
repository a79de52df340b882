"""Queries: the right neighbours, p-values that mean what they say, refusals with their reason."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy.stats import kstest

from lora_atlas import tables
from lora_atlas.collection.known import Known
from lora_atlas.collection.query import distances, neighbours, p_values, query
from lora_atlas.loras.files import open_lora
from lora_atlas.weights.gram import gram
from lora_atlas.weights.modules import module_grams
from lora_atlas.weights.sketch import read_sketch, sketch, sketch_gram, write_sketch
from lora_atlas.weights.weighting import weighted_sum

ARTISTS = ["Ada", "Ada", "Ada", "Bob", "Bob", "Bob", "Cy", "Cy", "Dan", "Eve"]
GENRES = ["still life"] * 5 + ["portrait"] * 5
NUMBERS = 24 * 2048


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
    # 7 LoRAs are of other artists than Ada's: nothing can be rarer than one in eight
    assert [row["p"] for row in rows[:3]] == [1 / 8] * 3 and np.mean([row["p"] for row in rows[3:]]) > 0.3
    for row in rows:
        assert row["distance"] == pytest.approx(np.sqrt(2 - 2 * row["cosine"]))
        assert (row["artist_vote"], row["artist_share"]) == ("Ada", 3 / 5)
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
        assert row["distance"] < 1e-3 and row["rank"] == 1 and row["p"] == 1 / 8


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
    D = distances(K[:-1, :-1] / np.sqrt(np.outer(*[np.diag(K)[:-1]] * 2)))
    p = p_values(distances(cos)[None], D, ARTISTS)[0]
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


def test_one_bad_query_costs_no_other_anything(make, tmp_path, exact):
    good = make.store(tmp_path / "in" / "good.safetensors", tensors(make, "Ada", 9))
    (tmp_path / "in" / "cut.safetensors").write_bytes(good.read_bytes()[:-9])
    make.store(tmp_path / "in" / "zero.safetensors", {k: 0 * x for k, x in load_file(good).items()})
    rows = answers([tmp_path / "in"], exact, nearest=2)
    found = {row["query"]: row for row in rows}
    assert found["good"]["status"] == "answered" and sum(row["query"] == "good" for row in rows) == 2
    assert "damaged" in found["cut"]["reason"] and "update is zero" in found["zero"]["reason"]
    assert (tmp_path / "absent.safetensors").exists() is False
    (row,) = answers([tmp_path / "absent.safetensors"], exact)
    assert row["status"] == "refused" and "no such file" in row["reason"]


def test_the_right_collection_is_asked(make, tmp_path, exact):
    shapes = {f"unet.down_blocks.1.attentions.0.transformer_blocks.{n}.attn2.to_k": (640, 2048) for n in (0, 1)}
    files = [make.lora(tmp_path / f"{n}.safetensors", shapes, n) for n in range(3)]
    xl = Known("sdxl", ["a", "b", "c"], [open_lora(p) for p in files], [None] * 3, [None] * 3, gram(files, "delta"))
    assert {row["space"] for row in answers([files[1], exact.files[0].path], [exact, xl])} == {"sd1", "sdxl"}
    row = answers([files[1]], [exact, xl])[0]
    assert row["lora"] == "b" and row["relation"] == "same update" and row["artist_vote"] is None


# --- p-values


def test_p_values_are_shares_counted_by_hand():
    near, artists = np.array([[0.5, 0.9, 1.2]]), ["A", "A", "B"]
    known = np.array([[0, 0.1, 0.6], [0.1, 0, 1.0], [0.6, 1.0, 0]])
    # of g = 0 only B's 0.6 is unrelated; of g = 2 both of A's, of which 0.6 and 1.0 are as near as 1.2
    assert p_values(near, known, artists).tolist() == [[1 / 2, 1 / 2, 1]]
    # without artists all others count, related or not
    assert p_values(near, known, [None] * 3).tolist() == [[2 / 3, 2 / 3, 1]]


def test_p_values_of_unrelated_loras_are_uniform():
    """Conformal: for exchangeable LoRAs, P(p ≤ k/(n+1)) = k/(n+1) exactly."""
    n, found = 19, []
    for seed in range(400):
        X = np.random.default_rng(seed).normal(size=(n + 2, 30))
        X /= np.linalg.norm(X, axis=1, keepdims=True)
        D = distances(X @ X.T)
        known, query_row = D[1:, 1:], D[:1, 1:]
        found.append(p_values(query_row, known, [str(i) for i in range(n + 1)])[0, 0])
    found = np.array(found)
    assert set(np.round(found * (n + 1)).astype(int)) <= set(range(1, n + 2))
    # p is uniform on k/20; a number below each makes it continuous
    spread = found - np.random.default_rng(0).uniform(size=len(found)) / (n + 1)
    assert kstest(spread, "uniform").pvalue > 0.01
    assert abs(np.mean(found <= 0.05) - 0.05) < 0.035


def test_the_p_value_of_a_sibling_is_as_small_as_it_can_be():
    rng, n = np.random.default_rng(0), 99
    X = rng.normal(size=(n + 1, 200))
    X = np.vstack([X[:1] + 0.5 * rng.normal(size=(1, 200)), X])
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    D = distances(X @ X.T)
    p = p_values(D[:1, 1:], D[1:, 1:], [str(i) for i in range(n + 1)])[0]
    assert p[0] == 1 / (n + 1) and 0.2 < p[1:].mean() < 0.8


# --- neighbours of the known


def test_neighbours_are_the_nearest_others_each_out_of_its_own_null(exact):
    rows = neighbours(exact, nearest=3)
    tables.table("neighbours", rows)
    assert len(rows) == 3 * len(ARTISTS)
    for row in rows:
        own = row["lora"].split("/")[0]
        assert row["lora"] != row["neighbour"] and row["artist"] == row["neighbour"].split("/")[0]
        if row["rank"] < ARTISTS.count(own):
            assert row["artist"] == own
            # others than the LoRA itself that are not of the neighbour's artist
            assert row["p"] == 1 / (1 + len(ARTISTS) - ARTISTS.count(own))
    grams = gram([exact.files[0].path], "delta")
    assert neighbours(Known("x", exact.loras[:1], exact.files[:1], ["A"], [None], grams)) == []
