"""How much modules count: against dense and direct computations, planted modules, and what must change nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from lora_atlas import tables
from lora_atlas.loras.container import digest
from lora_atlas.loras.files import open_lora
from lora_atlas.loras.names import block, component, places
from lora_atlas.weights import engine
from lora_atlas.weights.gram import gram, read_gram, read_header
from lora_atlas.weights.modules import module_grams
from lora_atlas.weights.products import normalise
from lora_atlas.weights.sketch import sketch_files_gram
from lora_atlas.weights.weighting import (
    WeightingError,
    aligned,
    consensus,
    fixed,
    listed,
    of_base,
    product,
    similarities,
    weighted_sum,
)

ARTISTS, EACH = 6, 4
NAMES = [
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v",
    "unet.mid_block.resnets.0.conv1",
    "unet.up_blocks.1.attentions.0.transformer_blocks.0.ff.net.2",
    "unet.up_blocks.1.attentions.2.proj_in",
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
]
INFORMED = 3  # the first modules tell the artists apart; the others are noise
LABELS = np.repeat(np.arange(ARTISTS), EACH)
OF = [f"artist{n}" for n in LABELS]
EVERYONE = np.arange(len(LABELS))


def planted(seed: int = 0, d: int = 60, unit: bool = False) -> np.ndarray:
    """Updates (modules, N, d); `unit`: of norm one, each."""
    rng = np.random.default_rng(seed)
    means = 1.5 * rng.normal(size=(INFORMED, ARTISTS, d))
    X = rng.normal(size=(len(NAMES), len(LABELS), d)) + 3 * rng.normal(size=(len(NAMES), 1, d))  # and a common part
    X[:INFORMED] += means[:, LABELS]
    return X / np.linalg.norm(X, axis=2, keepdims=True) if unit else X


def products(X: np.ndarray) -> np.ndarray:
    return X @ X.swapaxes(1, 2)


def named(X: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(NAMES, products(X), strict=True))


def dense(X: np.ndarray, weights=None) -> np.ndarray:
    """Cosines of all modules' updates as one vector."""
    weights = np.ones(len(X)) if weights is None else np.asarray(weights)
    flat = np.concatenate([np.sqrt(w) * x for w, x in zip(weights, X, strict=True)], 1)
    flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    return flat @ flat.T


# --- products


def test_modules_as_they_are_and_at_norm_one_are_dense_updates():
    X = planted() * np.geomspace(0.1, 10, len(NAMES))[:, None, None]
    known = {"base": None, "artists": OF}
    np.testing.assert_allclose(product("plain", named(X), **known).scaled(EVERYONE), dense(X), atol=1e-12)
    np.testing.assert_allclose(product("kfac", named(X), **known).scaled(EVERYONE), dense(X), atol=1e-12)
    at_one = X / np.linalg.norm(X, axis=2, keepdims=True)
    np.testing.assert_allclose(product("unit", named(X), **known).scaled(EVERYONE), dense(at_one), atol=1e-12)
    raw = product("plain", named(X), scale="raw", **known).scaled(EVERYONE)
    np.testing.assert_allclose(raw, products(X).sum(0), rtol=1e-12)


def test_gradients_of_the_base_weigh_the_modules_that_it_knows():
    X = planted()
    base = {"unet.somewhere.else": 9.0} | dict(zip(NAMES[:4], (1.0, 4.0, 0.5, 2.0), strict=True))
    found = product("gradient", named(X), base=base, artists=OF).scaled(EVERYONE)
    np.testing.assert_allclose(found, dense(X, (1, 4, 0.5, 2, 0, 0)), atol=1e-12)
    assert of_base(NAMES, base).tolist() == [0.25, 1.0, 0.125, 0.5, 0, 0]  # the largest at one
    assert of_base([f"{NAMES[0]}.bias", NAMES[1]], base).tolist() == [0.25, 1.0]  # a bias as its layer


@pytest.mark.parametrize("base", [None, {}, {"unet.conv_in": 3.0}, dict.fromkeys(NAMES, 0.0)], ids=str)
def test_gradients_of_other_modules_are_refused_with_what_to_do(base):
    with pytest.raises(WeightingError) as caught:
        product("gradient", named(planted()), base=base, artists=OF)
    assert all(word in str(caught.value) for word in (min(NAMES), "base.model", "training.targets"))


def test_a_weighting_that_does_not_exist_is_named():
    with pytest.raises(WeightingError, match=r"weights\.modules: 'consent' unknown"):
        product("consent", named(planted()), base=None, artists=OF)


@pytest.mark.parametrize("how", ["consensus", "learnt"])
def test_what_is_fitted_is_fitted_on_those_loras_alone(how):
    X, fitted = planted(), np.flatnonzero(LABELS < 4)
    plain = product(how, named(X), base=None, artists=OF).of(fitted)
    noise = np.random.default_rng(9).normal(size=X.shape)
    for changed, same in ((LABELS >= 4, True), (LABELS == 2, False)):
        Y = np.where(changed[:, None], 5 * noise, X)
        found = product(how, named(Y), base=None, artists=OF).of(fitted)
        rest = np.flatnonzero(~changed)
        assert np.allclose(found[np.ix_(rest, rest)], plain[np.ix_(rest, rest)], rtol=1e-9) == same


def test_what_is_fitted_weighs_dense_updates():
    X, order = planted(), sorted(range(len(NAMES)), key=NAMES.__getitem__)
    w = consensus(products(X), EVERYONE)
    found = product("consensus", named(X), base=None, artists=OF).scaled(EVERYONE)
    np.testing.assert_allclose(found, dense(X, w), atol=1e-9)
    unit = X / np.linalg.norm(X, axis=2, keepdims=True)
    w = aligned(products(unit)[order], LABELS, EVERYONE)
    found = product("learnt", named(X), base=None, artists=OF).scaled(EVERYONE)
    np.testing.assert_allclose(found, dense(unit[order], w), atol=1e-9)


def test_products_that_are_fixed_are_scaled_as_asked():
    K = products(planted())[0]
    assert (fixed(K).scaled(EVERYONE) == K).all()
    assert (fixed(K, "unit").scaled(EVERYONE) == normalise(K, "unit")).all()


# --- similarities


def unbiased(K: np.ndarray, L: np.ndarray) -> float:
    """HSIC₁ of Song et al. 2012, eq. 5, as it is written."""
    n, one = len(K), np.ones(len(K))
    K, L = K - np.diag(np.diag(K)), L - np.diag(np.diag(L))
    whole = one @ K @ one * (one @ L @ one) / ((n - 1) * (n - 2))
    return (np.trace(K @ L) + whole - 2 / (n - 2) * one @ K @ L @ one) / (n * (n - 3))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(4, 12), st.integers(1, 5), st.integers(1, 30))
def test_similarities_are_the_debiased_cka(seed, n, modules, d):
    rng = np.random.default_rng(seed)
    K = products(rng.normal(size=(modules, n, d)) + 0.5 * rng.normal(size=(n, d)))
    found = similarities(K)
    own = np.array([unbiased(each, each) for each in K])
    for i in range(modules):
        for j in range(modules):
            if min(own[i], own[j]) > 1e-6 * own.max():
                expected = unbiased(K[i], K[j]) / np.sqrt(own[i] * own[j])
                assert found[i, j] == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_similarities_are_one_with_oneself_and_nought_on_average_with_what_is_unrelated():
    K = products(np.random.default_rng(0).normal(size=(200, 6, 100)))  # few LoRAs: plain CKA would be far from zero
    found = similarities(K)
    assert np.diag(found) == pytest.approx(np.ones(200))
    away = found[~np.eye(200, dtype=bool)]
    assert abs(away.mean()) < 0.02 < away.std()


def test_a_module_without_spread_is_like_nothing():
    K = products(planted())
    K[1], K[2] = 0, 1
    found = similarities(K)
    assert (found[[1, 2]] == 0).all() and (found[:, [1, 2]] == 0).all()
    kept = [0, 3, 4, 5]
    np.testing.assert_allclose(found[np.ix_(kept, kept)], similarities(K[kept]))


# --- consensus


def centred_size(X: np.ndarray) -> np.ndarray:
    """‖HKH‖ of each module, of updates at norm one over all modules."""
    X = X / np.sqrt(np.square(X).sum((0, 2)))[:, None]
    X = X - X.mean(1, keepdims=True)
    return np.linalg.norm(products(X), axis=(1, 2))


@pytest.mark.parametrize("seed", range(3))
def test_modules_that_agree_weigh_more_than_noise(seed):
    X = planted(seed)
    w = consensus(products(X), EVERYONE)
    assert w.max() == 1 and (w >= 0).all()
    share = w * centred_size(X)
    assert share[:INFORMED].min() > 5 * share[INFORMED:].max()
    # As it is defined: the leading eigenvector of the similarities, over each module's norm.
    unit = X / np.sqrt(np.square(X).sum((0, 2)))[:, None]
    leading = np.linalg.eigh(similarities(products(unit)))[1][:, -1]
    expected = (leading * np.sign(leading.sum())).clip(0) / centred_size(X)
    np.testing.assert_allclose(w, expected / expected.max(), rtol=1e-7, atol=1e-9)


def test_a_loud_module_of_noise_does_not_speak_for_all():
    X = planted()
    X[-1] *= 30
    share = consensus(products(X), EVERYONE) * centred_size(X)
    assert share[:INFORMED].min() > 5 * share[INFORMED:].max()
    same = LABELS[:, None] == LABELS

    def gap(K: np.ndarray) -> float:
        return K[same & ~np.eye(len(K), dtype=bool)].mean() - K[~same].mean()

    how = {name: product(name, named(X), base=None, artists=OF).scaled(EVERYONE) for name in ("plain", "consensus")}
    assert gap(how["consensus"]) > 0.1 > 0.02 > gap(how["plain"])


@pytest.mark.parametrize("count", range(4))
def test_fewer_than_four_loras_have_no_consensus(count):
    assert (consensus(products(planted()), EVERYONE[::EACH][:count]) == 1).all()


def test_four_loras_are_enough_where_modules_are_the_same():
    K = np.repeat(products(planted())[:1], 4, 0) * np.array([1, 4, 9, 16])[:, None, None]
    w = consensus(K, EVERYONE[::EACH][:4])
    np.testing.assert_allclose(w, 1 / np.array([1, 4, 9, 16]), rtol=1e-6)


def test_a_module_of_zeros_and_one_that_is_alike_in_all_weigh_nothing():
    X = planted()
    plain = consensus(products(X), EVERYONE)
    for blank in (np.zeros_like(X[0]), np.broadcast_to(X[0, 0], X[0].shape)):
        # Whatever it is alike in, it must not be the LoRAs' lengths: those are made of all modules.
        Y = X / np.sqrt(np.square(X).sum((0, 2)))[:, None] if blank.any() else X
        w = consensus(products(np.concatenate([Y, blank[None]])), EVERYONE)
        assert w[-1] == 0
        np.testing.assert_allclose(w[:-1] / w.max(), plain, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("files", [2, 3, 5])
def test_modules_that_few_loras_have_do_not_make_the_consensus(files):
    """Two files with 222 modules of their own: any two of these agree wholly, by the one number that is not zero."""
    X, rng = planted(unit=True), np.random.default_rng(5)
    others = X.mean(1, keepdims=True) + X.std() * rng.normal(size=(len(NAMES), files, X.shape[2]))
    X = np.concatenate([X, others], 1)
    own = np.zeros((222, X.shape[1], X.shape[2]))
    own[:, -files:] = 0.5 * rng.normal(size=(222, 1, X.shape[2])) + rng.normal(size=(222, files, X.shape[2]))
    everyone = np.arange(X.shape[1])
    w = consensus(products(np.concatenate([X, own])), everyone)
    share = w[: len(NAMES)] * centred_size(X)
    assert share[:INFORMED].min() > 5 * share[INFORMED:].max()
    # What takes no part weighs as those that do weigh on average, by their squared norms.
    norms = np.square(X).sum(2)
    size = (norms / norms.sum(0)).sum(1)
    assert np.ptp(w[len(NAMES) :]) == 0 and w[-1] == pytest.approx(w[: len(NAMES)] @ size / size.sum())
    loud = np.concatenate([X, own]) * np.where(np.arange(X.shape[1]) == 3, 1000, 1)[:, None]
    assert consensus(products(loud), everyone) == pytest.approx(w, rel=1e-6)
    # What they say among themselves changes nothing of what the others agree on.
    assert w[: len(NAMES)] == pytest.approx(consensus(products(X), everyone), rel=1e-9)


def test_all_modules_alike_or_zero_have_no_consensus():
    assert (consensus(np.zeros((3, 6, 6)), np.arange(6)) == 1).all()
    assert (consensus(np.ones((3, 6, 6)), np.arange(6)) == 1).all()


def test_modules_that_are_unrelated_weigh_alike():
    """No more than by chance: of many seeds nearly all."""
    found = []
    for seed in range(40):
        X = np.random.default_rng(seed).normal(size=(5, 12, 50))
        found.append((consensus(products(X), np.arange(12)) == 1).all())
    assert np.mean(found) > 0.8  # 19 permutations: one in twenty exceeds them all


def test_a_consensus_is_the_same_each_time():
    X = products(planted())
    assert (consensus(X, EVERYONE) == consensus(X.copy(), EVERYONE)).all()


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(-3, 3), min_size=len(LABELS), max_size=len(LABELS)))
def test_how_large_a_lora_is_changes_no_weight(exponents):
    X = planted()
    scaled = X * 10 ** np.array(exponents)[:, None]
    np.testing.assert_allclose(
        consensus(products(scaled), EVERYONE), consensus(products(X), EVERYONE), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("how", ["consensus", "unit", "learnt"])
@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_how_large_a_modules_updates_are_changes_no_inner_product(how, factor):
    """Of LoRAs of one norm in each module: else a louder module also has a larger say in each LoRA's own length."""
    X = planted(unit=True)
    scaled = X.copy()
    scaled[1] *= factor
    one, other = (product(how, named(x), base=None, artists=OF).scaled(EVERYONE) for x in (X, scaled))
    np.testing.assert_allclose(one, other, atol=1e-8)
    plain = [product("plain", named(x), base=None, artists=OF).scaled(EVERYONE) for x in (X, scaled)]
    assert not np.allclose(*plain, atol=0.01)


def test_a_lora_of_zeros_has_no_say():
    X = planted()
    plain = consensus(products(X[:, 1:]), EVERYONE[:-1])
    X[:, 0] = 0
    w = consensus(products(X), EVERYONE)
    assert np.isfinite(w).all() and (w >= 0).all()
    assert (w[INFORMED:] < 0.3).all() and (w[:INFORMED] > 0.3).all() and (plain[:INFORMED] > 0.3).all()


# --- with labels


@pytest.mark.parametrize("seed", range(3))
def test_learnt_weights_are_those_of_modules_that_tell_labels_apart(seed):
    X = planted(seed, unit=True)
    w = aligned(products(X), LABELS, EVERYONE)
    assert w.max() == 1 and (w >= 0).all()
    assert w[:INFORMED].min() > 0.2 and w[:INFORMED].mean() > 4 * w[INFORMED:].mean()


def test_learnt_weights_are_a_least_squares_fit_of_the_pattern_of_labels():
    unit, fitted = products(planted(unit=True)), np.arange(3, 19)
    labels = LABELS[fitted]
    pairs = [(i, j) for i in range(len(fitted)) for j in range(len(fitted)) if i != j]
    goal = np.array([float(labels[i] == labels[j]) for i, j in pairs])
    A = np.array([[K[fitted[i], fitted[j]] for K in unit] for i, j in pairs])
    expected, _ = nnls(A - A.mean(0), goal - goal.mean())
    np.testing.assert_allclose(aligned(unit, LABELS, fitted), expected / expected.max(), rtol=1e-6, atol=1e-9)
    permuted = LABELS.copy()
    permuted[[0, 1, 2, -1]] = 99  # labels of those that are not fitted
    assert (aligned(unit, permuted, fitted) == aligned(unit, LABELS, fitted)).all()


def test_labels_that_teach_nothing_leave_modules_alike():
    unit = products(planted(unit=True))
    for labels in (np.zeros(len(LABELS)), EVERYONE):
        assert (aligned(unit, labels, EVERYONE) == 1).all()
    assert (aligned(-unit[:INFORMED], LABELS, EVERYONE) == 1).all()  # what goes against the labels has no weight


# --- sums


def test_a_weighted_sum_is_by_component_and_block():
    grams = named(planted())
    weights = dict(zip(NAMES[:5], (1.0, 0.5, 2.0, 0.0, 3.0), strict=True))
    more = f"{NAMES[0][:-1]}k"  # of the first's component and block
    found = weighted_sum(grams | {more: grams[NAMES[1]]}, weights | {more: 7.0})
    expected = {(component(name), block(name)): weights.get(name, 0.0) * K for name, K in grams.items()}
    expected[component(more), block(more)] = grams[NAMES[0]] + 7 * grams[NAMES[1]]
    assert list(found) == sorted(expected)
    for key, K in expected.items():
        np.testing.assert_allclose(found[key], K, rtol=1e-12)
    assert not found[component(NAMES[5]), block(NAMES[5])].any()  # it has no weight


def make_plan() -> object:
    return tables.table(
        "plan",
        [
            {
                "lora": f"{OF[n]}/{n % EACH:02}", "artist": OF[n], "genre": None, "seed": n, "pictures": ["p"],
                "split": "query" if n % EACH == EACH - 1 else "gallery", "overlap": 0.0,
            }
            for n in EVERYONE
        ],
    )  # fmt: skip


def test_weights_are_listed_with_shares_that_sum_to_one():
    X = planted() * np.geomspace(1, 3, len(NAMES))[:, None, None]
    grams = {"delta": named(X), "down": named(planted(1)), "up": named(planted(2))}
    base = dict(zip(NAMES[:4], (1.0, 4.0, 0.5, 2.0), strict=True))
    rows = listed(
        grams, make_plan(), ["delta", "factors", "down"],
        ["plain", "unit", "gradient", "consensus", "kfac", "learnt"], base=base,
    )  # fmt: skip
    tables.table("module_weights", rows)
    kinds = list(dict.fromkeys((row["kernel"], row["weighting"]) for row in rows))
    one_number = ["plain", "gradient", "consensus"]  # the others give a module none
    assert kinds == [("delta", how) for how in (*one_number, "learnt")] + [
        (kernel, how) for kernel in ("factors", "down") for how in one_number
    ]
    gallery = np.flatnonzero(EVERYONE % EACH != EACH - 1)
    names = sorted(NAMES)
    for kernel, how in kinds:
        mine = [row for row in rows if (row["kernel"], row["weighting"]) == (kernel, how)]
        assert [row["module"] for row in mine] == names
        assert [row["component"] for row in mine] == [component(name) for name in names]
        assert [row["block"] for row in mine] == [places(name)[-1] for name in names]
        weights, share, weighted = (
            np.array([row[key] for row in mine]) for key in ("weight", "share", "weighted_share")
        )
        assert share.sum() == pytest.approx(1) and weighted.sum() == pytest.approx(1) and weights.max() == 1
        stack = np.stack(
            [sum(grams[p][n] for p in (["down", "up"] if kernel == "factors" else [kernel])) for n in names]
        )
        norms = np.trace(stack, axis1=1, axis2=2)
        np.testing.assert_allclose(share, norms / norms.sum())
        if how != "learnt":
            np.testing.assert_allclose(weighted, weights * norms / (weights @ norms))
        else:  # of updates at norm one, each
            np.testing.assert_allclose(weighted, weights / weights.sum())
        if how == "consensus":
            np.testing.assert_allclose(weights, consensus(stack, gallery), rtol=1e-7, atol=1e-12)
        if how == "gradient":
            assert weights.tolist() == [base.get(name, 0.0) / 4 for name in names]


def test_kernels_that_are_not_there_are_not_listed():
    assert {
        r["kernel"]
        for r in listed({"delta": named(planted())}, make_plan(), ["delta", "factors", "up"], ["plain"], base=None)
    } == {"delta"}


# --- a collection, by either engine


SHAPES = {  # (out, in)
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (24, 30),
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k": (24, 30),
    "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": (24, 30),
    "unet.up_blocks.1.attentions.0.transformer_blocks.0.ff.net.2": (20, 40),
}
INFORMED_SHAPES = 3
NUMBERS = 4 * 4096


@pytest.fixture(scope="module")
def folder(make, tmp_path_factory):
    """Twelve LoRAs of three artists, who differ by all modules but the last."""
    root, rng = tmp_path_factory.mktemp("collection"), np.random.default_rng(0)
    own = {(a, m): rng.normal(size=(2, width)) for a in range(3) for m, (_, width) in SHAPES.items()}
    outs = {(a, m): rng.normal(size=(out, 2)) for a in range(3) for m, (out, _) in SHAPES.items()}
    paths = []
    for n in range(12):
        found = {}
        for i, (m, (out, width)) in enumerate(SHAPES.items()):
            A, B = rng.normal(size=(2, width)), rng.normal(size=(out, 2))
            if i < INFORMED_SHAPES:
                A, B = own[n % 3, m] + 0.3 * A, outs[n % 3, m] + 0.3 * B
            found |= {f"{m}.lora_A.weight": A.astype(np.float32), f"{m}.lora_B.weight": B.astype(np.float32)}
        paths.append(make.store(root / f"{n}.safetensors", found))
    return paths


def weigh(paths, folder, how: str, weighting: str = "consensus", **subset) -> tuple[dict, dict, dict]:
    """Plain and weighted matrices of a collection, and the header of the latter."""
    ids, plain = [path.stem for path in paths], folder / "weights" / "delta.safetensors"
    engine.matrices(
        paths, ids, "delta", plain, engine=how, cache=folder / "cache.safetensors", folder=folder / "sketches",
        numbers=NUMBERS,
    )  # fmt: skip
    output = folder / "weights" / "weighted.safetensors"
    engine.weighted(plain, paths, output, weighting=weighting, **subset)
    have, grams = read_gram(output, "delta")
    assert have == ids
    return read_gram(plain, "delta")[1], grams, read_header(output)


def test_sketches_are_summed_by_any_key_and_with_weights(folder, tmp_path):
    shas = [digest(open_lora(path).path) for path in folder]
    files = engine.sketched(folder, shas, tmp_path / "sketches", numbers=NUMBERS)
    single = sketch_files_gram(files, key=str)
    assert list(single) == sorted(SHAPES)
    exact, _ = module_grams(folder, ["delta"])
    for module, K in single.items():
        scale = np.sqrt(np.outer(*[np.diag(exact["delta"][module])] * 2))
        assert np.abs((K - exact["delta"][module]) / scale).max() < 0.1
    weights = dict(zip(SHAPES, (2.0, 0.5, 0.0), strict=False))
    found = sketch_files_gram(files, weights=weights)
    expected = weighted_sum(single, weights)
    assert list(found) == list(expected)
    for key, K in expected.items():
        np.testing.assert_allclose(found[key], K, rtol=1e-9, atol=1e-9)
    for key, K in sketch_files_gram(files).items():  # all alike: as they are
        np.testing.assert_allclose(K, weighted_sum(single, dict.fromkeys(SHAPES, 1.0))[key], rtol=1e-9)


@pytest.mark.parametrize("how", ["exact", "sketch"])
def test_a_collection_is_weighted_by_its_own_consensus_and_engine(folder, tmp_path, how):
    plain, grams, header = weigh(folder, tmp_path, how)
    shas = [digest(open_lora(path).path) for path in folder]
    if how == "exact":
        single = module_grams(folder, ["delta"])[0]["delta"]
    else:
        single = sketch_files_gram(engine.sketched(folder, shas, tmp_path / "sketches", numbers=NUMBERS), key=str)
        assert header["numbers"] == NUMBERS
    names = sorted(SHAPES)
    expected = consensus(np.stack([single[name] for name in names]), np.arange(12))
    assert header["engine"] == how and header["weighting"] == "consensus"
    assert header["modules"] == dict(zip(names, expected.tolist(), strict=True))
    noise = list(SHAPES)[-1]
    assert max(expected) == 1 and header["modules"][noise] < 0.6 * min(
        w for m, w in header["modules"].items() if m != noise
    )
    for key, K in weighted_sum(single, header["modules"]).items():
        np.testing.assert_allclose(grams[key], K, rtol=1e-9, atol=1e-9)
    assert list(grams) == list(plain) and not np.allclose(sum(grams.values()), sum(plain.values()))


@pytest.mark.parametrize("how", ["exact", "sketch"])
def test_fewer_than_four_loras_and_those_that_are_to_be_plain_have_no_weights(folder, tmp_path, how):
    for name, paths, weighting in (("few", folder[:3], "consensus"), ("plain", folder, "plain")):
        plain, grams, header = weigh(paths, tmp_path / name, how, weighting)
        assert header["modules"] is None and header["weighting"] == "plain" and header["engine"] == how
        assert list(grams) == list(plain) and all((grams[key] == K).all() for key, K in plain.items())
    assert weigh(folder[:4], tmp_path / "four", how)[2]["modules"] is not None


@pytest.mark.parametrize("how", ["exact", "sketch"])
def test_a_subset_of_modules_has_a_consensus_of_its_own(folder, tmp_path, how):
    _, grams, header = weigh(folder, tmp_path, how, components=["self_attention"], blocks=["down"])
    assert list(header["modules"]) == sorted(list(SHAPES)[:2])
    assert not grams["feed_forward", "up"].any() and grams["self_attention", "down"].any()


def test_the_consensus_of_a_large_collection_is_that_of_some(folder, tmp_path, monkeypatch):
    whole = weigh(folder, tmp_path / "whole", "sketch")[2]["modules"]
    monkeypatch.setattr(engine, "FITTED", 8)
    seen, real = [], engine.consensus
    monkeypatch.setattr(engine, "consensus", lambda stack, fitted: seen.append(stack.shape) or real(stack, fitted))
    plain, grams, header = weigh(folder, tmp_path / "some", "sketch")
    again = weigh(folder, tmp_path / "again", "sketch")[2]
    assert seen == [(len(SHAPES), 8, 8)] * 2 and header["modules"] == again["modules"] != whole
    assert {K.shape for K in grams.values()} == {(12, 12)} == {K.shape for K in plain.values()}


def test_a_weighted_collection_keeps_its_plain_matrices(folder, tmp_path):
    plain, _, _ = weigh(folder, tmp_path, "exact")
    for key, K in gram(folder, "delta").items():
        np.testing.assert_allclose(plain[key], K, rtol=1e-12)


@pytest.mark.parametrize(("how", "weighting"), [("exact", "consensus"), ("exact", "plain"), ("sketch", "consensus")])
@pytest.mark.parametrize("count", [12, 3])
def test_both_matrices_of_a_collection_at_once_are_those_of_one_after_the_other(
    folder, tmp_path, how, weighting, count
):
    paths, subset = folder[:count], {"components": ["self_attention"]}
    plain, grams, header = weigh(paths, tmp_path, how, weighting, **subset)
    outputs = tmp_path / "at/once/delta.safetensors", tmp_path / "at/once/weighted.safetensors"
    engine.collection(
        paths, [path.stem for path in paths], *outputs, weighting=weighting, engine=how, cache=tmp_path / "other",
        folder=tmp_path / "sketches", numbers=NUMBERS, **subset,
    )  # fmt: skip
    for expected, output in ((plain, outputs[0]), (grams, outputs[1])):
        have, found = read_gram(output, "delta")
        assert have == [path.stem for path in paths] and found.keys() == expected.keys()
        for key, K in expected.items():
            np.testing.assert_allclose(found[key], K, rtol=1e-6, atol=1e-6 * np.abs(K).max(initial=1e-9))
    again = read_header(outputs[1])
    assert again["engine"] == header["engine"] and again["modules"] == (
        None if header["modules"] is None else pytest.approx(header["modules"])
    )
