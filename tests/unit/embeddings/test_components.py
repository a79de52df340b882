"""Principal components from a Gram matrix, and drift corrected: against dense computations and closed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes, polar
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_similarity, euclidean_distances

from lora_atlas.embeddings import components as room
from lora_atlas.embeddings.components import (
    CALIBRATIONS,
    AlikeError,
    check_gallery,
    embed,
    halves,
    ladder,
    together,
    unseen,
    whole,
    widest,
)
from lora_atlas.weights.products import combine, normalise

ALL = tuple(CALIBRATIONS)


def spiked(
    artists: int, per_artist: int, d: int, spread: float, seed: int, queries: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X (N, d): an artist's mean plus unit noise in every direction; artist of each row; mask of the gallery."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(artists, d)) * spread
    artist = np.repeat(np.arange(artists), per_artist)
    gallery = np.tile(np.arange(per_artist) >= queries, artists)
    return means[artist] + rng.normal(size=(len(artist), d)), artist, gallery


def small(seed: int = 0, n: int = 14, d: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """X (n, d) with a mean far from zero and unequal directions; every third row is a query."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) * np.geomspace(3, 0.3, d) + rng.normal(size=d), np.arange(n) % 3 != 1


def run(X: np.ndarray, gallery: np.ndarray, dimensions: int = 4, folds: int = 5, seed: int = 0) -> dict:
    return embed(X @ X.T, gallery, dimensions, ALL, folds=folds, seed=seed)


def turned_onto(basis: np.ndarray, onto: np.ndarray) -> np.ndarray:
    """R of orthonormal columns that brings `basis` (d, 2k) nearest to `onto` (d, k): a polar factor."""
    return polar(basis.T @ onto)[0]


def retrieved(vectors: np.ndarray, artist: np.ndarray, gallery: np.ndarray) -> float:
    """Mean average precision of the queries by L2 distance."""
    far = euclidean_distances(vectors[~gallery], vectors[gallery])
    same = artist[~gallery][:, None] == artist[gallery]
    return float(np.mean([average_precision_score(hits, -row) for hits, row in zip(same, far, strict=True)]))


def up_to_sign(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found, expected * signs, rtol=1e-7, atol=1e-8 * np.abs(expected).max())


# --- principal components


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(6, 16), st.integers(3, 60), st.integers(1, 5))
def test_uncalibrated_vectors_are_those_of_a_dense_pca_of_the_gallery(seed, n, d, dimensions):
    X, gallery = small(seed, n, d)
    dimensions = min(dimensions, d)
    found = embed(X @ X.T, gallery, dimensions, ["none"], folds=n, seed=0)["none"]
    pca = PCA(min(dimensions, gallery.sum() - 2), svd_solver="full").fit(X[gallery])
    up_to_sign(found.vectors, pca.transform(X))
    np.testing.assert_allclose(found.explained, pca.explained_variance_ratio_, rtol=1e-8)


@pytest.mark.parametrize("dimensions", [4, 99])
def test_all_together_are_a_dense_pca_of_all(dimensions):
    X, _ = small()
    found = together(X @ X.T, dimensions)
    up_to_sign(found, PCA(min(dimensions, len(X) - 1), svd_solver="full").fit_transform(X))
    everyone = np.ones(len(X), bool)
    np.testing.assert_allclose(run(X, everyone)["none"].vectors, found[:, :4], rtol=1e-9)


def test_the_largest_weight_of_a_component_is_positive():
    X, gallery = small()
    scores = run(X, gallery)["none"].vectors[gallery]
    assert (scores[np.abs(scores).argmax(0), np.arange(scores.shape[1])] > 0).all()


def test_no_component_is_without_variance_and_no_basis_is_larger_than_its_smallest_fold():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(12, 3)) @ rng.normal(size=(3, 50))
    gallery = np.ones(12, bool)
    flat = embed(X @ X.T, gallery, 8, ALL, folds=4, seed=0)
    assert {found.vectors.shape for found in flat.values()} == {(12, 3)}
    assert flat["none"].explained.sum() == pytest.approx(1)
    assert np.isfinite(flat["rescale"].ratio).all()
    X = rng.normal(size=(12, 50))
    for folds, smallest in ((2, 6), (4, 9), (5, 9), (99, 11)):
        found = embed(X @ X.T, gallery, 20, ALL, folds=folds, seed=0)
        assert {one.vectors.shape for one in found.values()} == {(12, smallest - 1)}


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.floats(0.01, 100))
def test_a_common_shift_changes_nothing_and_a_common_scale_only_the_scale(seed, scale):
    X, gallery = small(seed)
    plain = run(X, gallery)
    changed = run(X * scale + np.random.default_rng(seed).normal(size=X.shape[1]), gallery)
    for name in ALL:
        np.testing.assert_allclose(changed[name].vectors, plain[name].vectors * scale, rtol=1e-5, atol=1e-6 * scale)
        np.testing.assert_allclose(changed[name].ratio, plain[name].ratio, rtol=1e-5)


# --- calibrations


def test_the_drift_of_a_spiked_model_has_its_closed_form():
    """Held-out over in-sample is θ / (θ + d/n) for a spike of variance θ over unit noise (Lee, Zou & Wright 2010)."""
    rng = np.random.default_rng(0)
    n, d, theta = 80, 8000, np.array([400.0, 120.0, 40.0])
    X = rng.normal(size=(n, d))
    X[:, :3] *= np.sqrt(1 + theta)
    ratio = embed(X @ X.T, np.ones(n, bool), 3, ["none"], folds=5, seed=0)["none"].ratio
    np.testing.assert_allclose(ratio, theta / (theta + d / n), rtol=0.1)
    assert (np.diff(ratio) < 0).all() and (ratio < 1).all()


def test_the_drift_is_that_of_leaving_each_lora_out_of_a_dense_pca():
    X, gallery = small(n=11)
    inside = np.flatnonzero(gallery)
    full = PCA(3, svd_solver="full").fit(X[inside])
    held = []
    for i in inside:
        rest = PCA(min(6, len(inside) - 2), svd_solver="full").fit(X[np.setdiff1d(inside, i)])
        R = turned_onto(rest.components_.T, full.components_.T)
        held.append((X[i] - X[inside].mean(0)) @ rest.components_.T @ R)
    expected = np.sqrt(np.square(held).mean(0) / np.square(full.transform(X[inside])).mean(0))
    found = run(X, gallery, dimensions=3)
    for one in found.values():
        np.testing.assert_allclose(one.ratio, expected, rtol=1e-7)


def test_a_gallery_without_noise_does_not_drift():
    X, _, gallery = spiked(5, 60, 4, 3.0, seed=0)  # d/n is nearly zero
    assert np.abs(run(X, gallery, dimensions=3)["none"].ratio - 1).max() < 0.02


@pytest.mark.parametrize("groups", [3, 10, 32])
def test_a_large_gallery_is_left_out_in_groups(monkeypatch, groups):
    X, gallery = small(n=60, d=200)
    n, left_out, held_out = int(gallery.sum()), [], room._held_out

    def ratio() -> np.ndarray:
        return embed(X @ X.T, gallery, 4, ["none"], folds=5, seed=0)["none"].ratio

    def recorded(K, full, folds, *rest):
        left_out.append(folds)
        return held_out(K, full, folds, *rest)

    monkeypatch.setattr(room, "_held_out", recorded)
    monkeypatch.setattr(room, "GROUPS", groups)
    monkeypatch.setattr(room, "LEAVE_ONE_OUT_LIMIT", n)
    single = ratio()
    monkeypatch.setattr(room, "LEAVE_ONE_OUT_LIMIT", n - 1)
    grouped = ratio()
    assert [len(folds) for folds in left_out] == [n, groups]
    for folds in left_out:
        assert np.array_equal(np.sort(np.concatenate(folds)), np.arange(n))
    assert not np.array_equal(single, grouped)
    np.testing.assert_allclose(grouped, single, rtol=0.3 if groups == 3 else 0.1)


def test_rescaled_queries_are_divided_by_the_drift_and_the_gallery_is_left_alone():
    X, gallery = small()
    found = run(X, gallery)
    assert (found["rescale"].vectors[gallery] == found["none"].vectors[gallery]).all()
    np.testing.assert_allclose(
        found["rescale"].vectors[~gallery] * found["none"].ratio, found["none"].vectors[~gallery], rtol=1e-12
    )


def test_crossfit_equals_dense_bases_that_never_saw_the_lora_turned_onto_the_whole_one():
    X, gallery = small()
    inside, k = np.flatnonzero(gallery), 4
    found = run(X, gallery, dimensions=k, folds=len(X))["crossfit"].vectors  # every fold is one LoRA
    full = PCA(k, svd_solver="full").fit(X[inside])
    expected = np.zeros((len(X), k))
    for i in inside:
        rest = PCA(min(2 * k, len(inside) - 2), svd_solver="full").fit(X[np.setdiff1d(inside, i)])
        R = turned_onto(rest.components_.T, full.components_.T)
        scores = (X - full.mean_) @ rest.components_.T @ R
        expected[i] = scores[i]
        expected[~gallery] += scores[~gallery] / len(inside)
    up_to_sign(found, expected)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 5))
def test_alignment_is_the_orthogonal_procrustes_rotation(seed, k, fewer):
    X, gallery = small(seed)
    K, inside = X @ X.T, np.flatnonzero(gallery)
    full = room._fit(K, inside, k)
    Q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(k, k)))
    turned = room._Basis(inside, full.C @ Q, full.variances)
    np.testing.assert_allclose(room._align(K, turned, full), Q.T, atol=1e-9)
    part = room._fit(K, inside[:-2], k)
    dense = [X[basis.rows].T @ basis.C for basis in (part, full)]  # (d, k), orthonormal
    np.testing.assert_allclose(dense[0].T @ dense[0], np.eye(k), atol=1e-8)
    np.testing.assert_allclose(room._align(K, part, full), orthogonal_procrustes(*dense)[0], atol=1e-6)
    narrow = room._align(K, room._fit(K, inside[:-2], min(k, fewer)), full)
    np.testing.assert_allclose(narrow @ narrow.T, np.eye(len(narrow)), atol=1e-9)


def test_crossfit_loses_nothing_where_there_are_more_real_directions_than_components():
    # Twelve artists far apart have eleven directions; eight components keep some, and every fold keeps others.
    X, artist, gallery = spiked(12, 8, 3000, 0.5, seed=0, queries=2)
    found = run(X, gallery, dimensions=8)
    score = {name: retrieved(found[name].vectors, artist, gallery) for name in ALL}
    assert score["crossfit"] >= score["none"] > 0.9


def test_crossfitted_gallery_and_queries_are_of_one_size():
    X, _, gallery = spiked(12, 8, 6000, 0.2, seed=1, queries=2)
    found = run(X, gallery, dimensions=11)

    def size(name):  # of a gallery vector over a query vector
        length = np.square(found[name].vectors).sum(1)
        return np.sqrt(length[gallery].mean() / length[~gallery].mean())

    assert size("none") > 3 and 0.9 < size("crossfit") < 1.1


@pytest.mark.parametrize("seed", range(3))
def test_both_corrections_improve_retrieval_by_distance_on_a_spiked_model(seed):
    X, artist, gallery = spiked(12, 8, 6000, 0.2, seed=seed, queries=2)
    found = run(X, gallery, dimensions=11)  # as many as the artists' means span
    score = {name: retrieved(found[name].vectors, artist, gallery) for name in ALL}
    assert score["none"] < 0.6
    assert score["rescale"] > 0.8 and score["crossfit"] > 0.8


def test_the_closed_form_of_the_drift_is_that_of_a_spiked_model_and_near_what_is_measured():
    """θ / (θ + d/n), from the eigenvalues alone (Lee, Zou & Wright 2010)."""
    rng = np.random.default_rng(0)
    n, d, theta = 80, 8000, np.array([400.0, 120.0, 40.0])
    X = rng.normal(size=(n, d))
    X[:, :3] *= np.sqrt(1 + theta)
    found = embed(X @ X.T, np.ones(n, bool), 3, ["lzw"], folds=5, seed=0)["lzw"]
    np.testing.assert_allclose(found.predicted, theta / (theta + d / n), rtol=0.15)
    np.testing.assert_allclose(found.predicted, found.ratio, rtol=0.1)  # both are estimates
    # And as it is defined: variances less the mean of those left out, over variances.
    values = np.linalg.svd(X - X.mean(0), compute_uv=False)[: n - 1] ** 2
    np.testing.assert_allclose(found.predicted, 1 - values[3:].mean() / values[:3], rtol=1e-9)


def test_without_directions_left_out_the_closed_form_knows_no_drift():
    X = np.random.default_rng(0).normal(size=(12, 3)) @ np.random.default_rng(1).normal(size=(3, 50))
    found = embed(X @ X.T, np.ones(12, bool), 3, ["lzw"], folds=5, seed=0)["lzw"]
    np.testing.assert_allclose(found.predicted, 1, rtol=1e-6)
    rows = np.arange(4)
    full = room._fit(np.eye(4), rows, 3)  # no more than the LoRAs span
    assert (room.predicted_drift(np.eye(4), full) == 1).all()


def test_lzw_divides_queries_by_the_closed_form_and_leaves_the_gallery_alone():
    X, gallery = small()
    found = run(X, gallery)
    plain, lzw = found["none"].vectors, found["lzw"].vectors
    assert (lzw[gallery] == plain[gallery]).all()
    np.testing.assert_allclose(lzw[~gallery] * found["lzw"].predicted.clip(1e-3), plain[~gallery], rtol=1e-12)


def test_split_equals_a_dense_pca_of_half_of_the_gallery():
    X, gallery = small(n=20)
    inside, k = np.flatnonzero(gallery), 3
    found = run(X, gallery, dimensions=k, seed=4)["split"].vectors
    half = room._folds(len(inside), 2, 4)[0]
    assert len(half) == -(-len(inside) // 2)
    full = PCA(k, svd_solver="full").fit(X[inside])
    wide = min(2 * k, len(half) - 1)
    first = PCA(wide, svd_solver="full").fit(X[inside[half]])
    R = turned_onto(first.components_.T, full.components_.T)
    scores = (X - X[inside].mean(0)) @ first.components_.T
    held = []  # the ratio of the half: each of it left out, twice as wide again
    for i in half:
        rest = PCA(min(2 * wide, len(half) - 2), svd_solver="full").fit(X[inside[np.setdiff1d(half, i)]])
        away = X[inside[i]] - X[inside[half]].mean(0)
        held.append(away @ rest.components_.T @ turned_onto(rest.components_.T, first.components_.T))
    ratio = np.sqrt(np.square(held).mean(0) / np.square(first.transform(X[inside[half]])).mean(0))
    scores[inside[half]] *= ratio
    up_to_sign(found, scores @ R)


def test_split_holds_the_other_half_out_as_it_does_the_queries():
    """The half that the basis was not fitted on, and its own half brought down, are of the queries' size."""
    X, _, gallery = spiked(12, 8, 6000, 0.2, seed=1, queries=2)
    found = run(X, gallery, dimensions=11)["split"].vectors
    half = room._folds(int(gallery.sum()), 2, 0)[0]
    length = np.sqrt(np.square(found).sum(1))
    own = np.isin(np.arange(gallery.sum()), half)
    for part in (own, ~own):
        assert 0.8 < length[gallery][part].mean() / length[~gallery].mean() < 1.25


@pytest.mark.parametrize("seed", range(3))
def test_the_closed_form_and_the_split_improve_retrieval_too(seed):
    X, artist, gallery = spiked(12, 8, 6000, 0.2, seed=seed, queries=2)
    found = run(X, gallery, dimensions=11)
    score = {name: retrieved(found[name].vectors, artist, gallery) for name in ALL}
    assert score["lzw"] > score["none"] + 0.2 and score["lzw"] > 0.8
    assert score["split"] > score["none"]


def test_the_seed_divides_the_halves_of_a_split():
    X, gallery = small()
    one, other = run(X, gallery, seed=1)["split"].vectors, run(X, gallery, seed=2)["split"].vectors
    assert not np.allclose(one, other) and (one == run(X, gallery, seed=1)["split"].vectors).all()


# --- who may influence whom


def test_queries_move_neither_the_gallery_nor_each_other():
    X, gallery = small()
    plain = run(X, gallery)
    (first, *others) = np.flatnonzero(~gallery)
    changed = X.copy()
    changed[first] = 100 * np.random.default_rng(1).normal(size=X.shape[1])
    found = run(changed, gallery)
    alone = gallery.copy()
    alone[first] = True
    without = run(X[alone], gallery[alone])
    for name in ALL:
        same = np.arange(len(X)) != first
        np.testing.assert_allclose(found[name].vectors[same], plain[name].vectors[same], rtol=1e-9, atol=1e-10)
        assert not np.allclose(found[name].vectors[first], plain[name].vectors[first])
        np.testing.assert_allclose(without[name].vectors, plain[name].vectors[alone], rtol=1e-9, atol=1e-10)
        assert others


def test_a_gallery_lora_moves_the_rest():
    X, gallery = small()
    changed = X.copy()
    changed[np.flatnonzero(gallery)[0]] *= 3
    assert all(not np.allclose(run(changed, gallery)[n].vectors[-1], run(X, gallery)[n].vectors[-1]) for n in ALL)


@settings(deadline=None, max_examples=15)
@given(st.permutations(range(14)))
def test_vectors_do_not_depend_on_the_order_of_loras(order):
    X, gallery = small()
    plain, turned = run(X, gallery, folds=14), run(X[order], gallery[order], folds=14)  # folds of one LoRA each
    for name in sorted(set(ALL) - {"split"}):  # which halves the gallery, as it is listed
        np.testing.assert_allclose(turned[name].vectors, plain[name].vectors[order], rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(turned[name].ratio, plain[name].ratio, rtol=1e-9)


def test_the_seed_divides_the_folds_and_nothing_else():
    X, gallery = small()
    first, again, other = run(X, gallery, seed=1), run(X, gallery, seed=1), run(X, gallery, seed=2)
    assert all((first[name].vectors == again[name].vectors).all() for name in ALL)
    assert (first["none"].vectors == other["none"].vectors).all()
    assert not np.allclose(first["crossfit"].vectors, other["crossfit"].vectors)


# --- matrices


def test_unit_scale_is_cosine_similarity_and_a_zero_lora_stays_zero():
    X = np.random.default_rng(0).normal(size=(6, 9)) * np.geomspace(1e-6, 1e6, 6)[:, None]
    X[2] = 0
    K = normalise(X @ X.T, "unit")
    np.testing.assert_allclose(K, cosine_similarity(X), atol=1e-12)
    assert np.diag(K) == pytest.approx([1, 1, 0, 1, 1, 1])
    assert (normalise(X @ X.T, "raw") == X @ X.T).all()
    with pytest.raises(ValueError, match=r"weights\.scales: 'unti' unknown; there are 'unit' and 'raw'"):
        normalise(K, "unti")


GRAMS = {
    ("self_attention", "down"): np.full((2, 2), 1.0),
    ("self_attention", "up"): np.full((2, 2), 10.0),
    ("feed_forward", "down"): np.full((2, 2), 100.0),
}


@pytest.mark.parametrize(
    ("components", "blocks", "total"),
    [
        (None, None, 111),
        (["self_attention"], None, 11),
        (None, ["down"], 101),
        (["feed_forward", "self_attention"], ["down"], 101),
        (["self_attention"], ["up"], 10),
    ],
)
def test_a_subset_of_modules_is_a_sum_of_matrices(components, blocks, total):
    assert (combine(GRAMS, components, blocks) == total).all()
    assert GRAMS["self_attention", "down"][0, 0] == 1  # the parts are not summed into


def test_components_and_blocks_that_are_not_there_are_named():
    with pytest.raises(ValueError, match=r"weights\.components: \['feedforward', 'x'\].*'feed_forward', 'self_att"):
        combine(GRAMS, ["x", "feedforward", "self_attention"])
    with pytest.raises(ValueError, match=r"weights\.blocks: \['mid'\] are not in these LoRAs.*\['down', 'up'\]"):
        combine(GRAMS, None, ["mid"])
    with pytest.raises(ValueError, match=r"no module is in components \['feed_forward'\] and blocks \['up'\]"):
        combine(GRAMS, ["feed_forward"], ["up"])
    with pytest.raises(ValueError, match="no module"):
        combine(GRAMS, [])


# --- galleries that are no basis


@pytest.mark.parametrize("n", range(4))
def test_a_gallery_of_fewer_than_four_is_refused_with_its_size(n):
    X, _ = small()
    with pytest.raises(ValueError, match=rf"at least 4 gallery LoRAs; there are {n}"):
        run(X, np.arange(len(X)) < n)


def test_four_are_enough():
    X, _ = small()
    found = run(X, np.arange(len(X)) < 4, dimensions=16)
    assert {one.vectors.shape for one in found.values()} == {(14, 2)}
    assert all(np.isfinite(one.vectors).all() for one in found.values())


@pytest.mark.parametrize("n", [4, 6, 7, 12, 13])
@pytest.mark.parametrize("scale", ["raw", "unit"])
def test_copies_of_one_lora_are_refused(n, scale):
    X = np.tile(np.random.default_rng(3).normal(size=50), (n, 1))  # every mean of them rounds a little differently
    with pytest.raises(ValueError, match="all alike"):
        embed(normalise(X @ X.T, scale), np.ones(n, bool), 3, ALL, folds=5, seed=0)
    with pytest.raises(ValueError, match="all alike"):
        together(normalise(X @ X.T, scale), 3)


# --- artists that the basis has not seen


def by_artist(artists: int = 6, per_artist: int = 4) -> tuple[np.ndarray, np.ndarray, list[str]]:
    X, artist, gallery = spiked(artists, per_artist, 60, 1.0, seed=0, queries=1)
    return X, gallery, [f"artist {a}" for a in artist]


def apart(X: np.ndarray, gallery: np.ndarray, artists: list[str], dimensions: int | None = 5, **how):
    """Vectors of artists that are unseen, and each LoRA's part."""
    part = halves(artists, **({"seed": 0} | how))
    return unseen(lambda fitted: X @ X.T, gallery, part, dimensions), part


def test_an_artist_falls_into_one_part_and_the_parts_are_even():
    _, _, artists = by_artist()
    part = halves(artists, seed=0)
    of = {a: {p for b, p in zip(artists, part, strict=True) if a == b} for a in artists}
    assert all(len(parts) == 1 for parts in of.values())
    assert sorted(next(iter(parts)) for parts in of.values()) == [0, 0, 0, 1, 1, 1]
    assert not np.array_equal(part, halves(artists, seed=1))
    assert sorted(set(halves(artists, seed=0, parts=3))) == [0, 1, 2]


@pytest.mark.parametrize("seed", range(3))
def test_the_parts_do_not_depend_on_the_order_of_loras(seed):
    X, gallery, artists = by_artist()
    vectors, part = apart(X, gallery, artists)
    assert vectors.shape == (len(X), 5)
    order = np.random.default_rng(seed).permutation(len(X))
    found = apart(X[order], gallery[order], [artists[i] for i in order])
    assert (found[1] == part[order]).all()
    np.testing.assert_allclose(found[0], vectors[order], rtol=1e-8, atol=1e-9)


def test_unseen_vectors_are_those_of_a_dense_pca_of_the_other_artists_gallery():
    X, gallery, artists = by_artist()
    vectors, part = apart(X, gallery, artists)
    for p in (0, 1):
        pca = PCA(5, svd_solver="full").fit(X[gallery & (part != p)])
        up_to_sign(vectors[part == p], pca.transform(X[part == p]))


def test_without_a_basis_unseen_vectors_have_the_inner_products_of_the_loras():
    X, gallery, artists = by_artist()
    vectors, part = apart(X, gallery, artists, None)
    for p in (0, 1):
        mine = part == p
        np.testing.assert_allclose(vectors[mine] @ vectors[mine].T, X[mine] @ X[mine].T, rtol=1e-9, atol=1e-9)
    alone = unseen(lambda fitted: X @ X.T, np.zeros(len(X), bool), part, None)  # with no gallery at all
    np.testing.assert_allclose(alone, vectors)


@pytest.mark.parametrize("dimensions", [5, None])
def test_inner_products_of_a_part_are_asked_for_by_the_gallery_of_the_others(dimensions):
    """What a product is fitted on, and whose product each part's vectors are of."""
    X, gallery, artists = by_artist()
    part, asked = halves(artists, seed=0), []

    def products(fitted: np.ndarray) -> np.ndarray:
        asked.append(fitted.tolist())
        return len(asked) ** 2 * (X @ X.T)

    vectors = unseen(products, gallery, part, dimensions)
    assert asked == [np.flatnonzero(gallery & (part != p)).tolist() for p in (0, 1)]
    plain = unseen(lambda fitted: X @ X.T, gallery, part, dimensions)
    for p in (0, 1):
        np.testing.assert_allclose(vectors[part == p], (p + 1) * plain[part == p], rtol=1e-6, atol=1e-7)


def test_loras_of_a_part_change_no_vector_of_that_part_but_their_own():
    X, gallery, artists = by_artist()
    vectors, part = apart(X, gallery, artists)
    for one in (np.flatnonzero(gallery)[0], np.flatnonzero(~gallery)[0]):
        changed = X.copy()
        changed[one] = 50 * np.random.default_rng(1).normal(size=X.shape[1])
        found, same_part = apart(changed, gallery, artists)
        assert (same_part == part).all()
        beside = (part == part[one]) & (np.arange(len(X)) != one)
        np.testing.assert_allclose(found[beside], vectors[beside], rtol=1e-8, atol=1e-9)
        assert not np.allclose(found[one], vectors[one])
        across = np.isclose(found[part != part[one]], vectors[part != part[one]]).all()
        assert across != gallery[one]  # a gallery LoRA is in the other part's basis, a query in none


def test_a_part_with_fewer_directions_is_filled_with_zeros():
    X, gallery, artists = by_artist(artists=5, per_artist=2)  # one gallery LoRA each: 2 and 3 fit a basis
    vectors, part = apart(X, gallery, artists)
    fitted = [int((gallery & (part != p)).sum()) for p in (0, 1)]
    assert sorted(fitted) == [2, 3] and vectors.shape == (10, 2)
    assert [int(np.any(vectors[part == p], axis=0).sum()) for p in (0, 1)] == [n - 1 for n in fitted]


def test_too_few_artists_or_gallery_loras_for_a_disjoint_basis_are_refused():
    X, gallery, artists = by_artist(artists=3)
    with pytest.raises(ValueError, match="at least 4 artists; there are 3"):
        halves(artists, seed=0)
    X, gallery, artists = by_artist(artists=4)
    with pytest.raises(ValueError, match="at least 6 artists; there are 4"):
        halves(artists, seed=0, parts=3)
    with pytest.raises(ValueError, match="at least 2 gallery LoRAs in each half"):
        apart(X, gallery & (np.array(artists) == artists[0]), artists)


def test_half_of_the_artists_that_are_all_alike_are_no_basis_for_the_others():
    X, gallery, artists = by_artist()
    part = halves(artists, seed=0)
    X[gallery & (part == 1)] = X[0]
    with pytest.raises(AlikeError, match=r"half of the artists .* all alike"):
        apart(X, gallery, artists)
    vectors, _ = apart(X, gallery, artists, None)  # which needs no basis
    np.testing.assert_allclose(vectors[part == 0] @ vectors[part == 0].T, X[part == 0] @ X[part == 0].T)


# --- no basis


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 16), st.integers(1, 40))
def test_whole_vectors_have_the_distances_and_cosines_of_the_loras(seed, n, d):
    X = np.random.default_rng(seed).normal(size=(n, d)) + 2  # about the origin as it is: no mean is taken off
    vectors = whole(X @ X.T)
    assert vectors.shape == (n, min(n, d))  # one a direction
    np.testing.assert_allclose(vectors @ vectors.T, X @ X.T, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(euclidean_distances(vectors), euclidean_distances(X), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(cosine_similarity(vectors), cosine_similarity(X), rtol=1e-6, atol=1e-7)
    assert (vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])] > 0).all()


def test_a_zero_lora_is_a_zero_vector_and_zeros_have_one_direction():
    X = np.random.default_rng(0).normal(size=(5, 3))
    X[2] = 0
    assert np.abs(whole(X @ X.T)[2]).max() < 1e-12
    assert (whole(np.zeros((4, 4))) == np.zeros((4, 1))).all()


def test_what_is_not_finite_is_refused():
    K = np.eye(6)
    K[1, 2] = np.nan
    for attempt in (lambda: whole(K), lambda: check_gallery(K, np.ones(6, bool))):
        with pytest.raises(ValueError, match="not finite"):
            attempt()


def test_the_variance_of_a_gallery_is_that_of_its_vectors():
    X, gallery = small()
    assert check_gallery(X @ X.T, gallery) == pytest.approx(X[gallery].var(0).sum())


# --- several numbers of dimensions


def test_a_ladder_is_the_embeddings_of_its_steps(monkeypatch):
    X, _, gallery = spiked(5, 6, 200, 0.5, 0, queries=2)
    K = X @ X.T
    steps = (2, 3, 8, 40)  # the last is more than there are
    expected = [embed(K, gallery, k, ALL, folds=4, seed=3) for k in steps]
    solved = []
    eigh = np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda M: solved.append(M.tobytes()) or eigh(M))
    found = list(ladder(K, gallery, steps, ALL, folds=4, seed=3))
    assert len(solved) == len(set(solved))  # no eigenproblem twice
    for one, other in zip(found, expected, strict=True):
        assert list(one) == list(ALL)
        for name in ALL:
            np.testing.assert_allclose(one[name], other[name].vectors, rtol=1e-9, atol=1e-9)
    assert found[-1]["none"].shape[1] == widest(int(gallery.sum()), 4)


def test_a_ladder_measures_no_drift_that_no_calibration_needs(monkeypatch):
    X, gallery = small()

    def refused(*_):
        raise AssertionError("measured")

    expected = run(X, gallery)
    monkeypatch.setattr(room, "drift", refused)
    (found,) = ladder(X @ X.T, gallery, [4], ["none", "lzw", "crossfit"], folds=5, seed=0)
    for name, vectors in found.items():
        np.testing.assert_allclose(vectors, expected[name].vectors, rtol=1e-9, atol=1e-12)
    with pytest.raises(AssertionError, match="measured"):
        list(ladder(X @ X.T, gallery, [4], ["rescale"], folds=5, seed=0))


def test_loras_that_are_all_alike_are_an_error_of_its_own():
    everyone = np.ones(6, bool)
    for attempt in (
        lambda: list(ladder(np.ones((6, 6)), everyone, [2], ["none"], folds=5, seed=0)),
        lambda: embed(np.ones((6, 6)), everyone, 2, ["none"], folds=5, seed=0),
        lambda: together(np.ones((6, 6)), 2),
        lambda: check_gallery(np.ones((6, 6)), everyone),
    ):
        with pytest.raises(AlikeError, match="all alike"):
            attempt()


@pytest.mark.parametrize("calibration", ALL)
def test_a_fold_without_a_direction_leaves_no_score_and_no_error(calibration):
    """All LoRAs but two stand in one place: bases that saw neither have nothing to describe by."""
    X = np.ones((12, 3))
    X[[4, 9], 0] = 5
    gallery = np.arange(12) % 4 != 3
    for seed in range(6):
        vectors = embed(X @ X.T, gallery, 2, [calibration], folds=3, seed=seed)[calibration].vectors
        assert vectors.shape == (12, 1) and np.isfinite(vectors).all() and np.abs(vectors).max() < 1e4
