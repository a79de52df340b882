"""Ablation: planted signals are found where they lie, parts add up, and random parts are as large as they should be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import plan
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score, average_precision_score
from sklearn.metrics.pairwise import euclidean_distances

from lora_atlas import tables
from lora_atlas.embeddings.components import embed, together
from lora_atlas.metrics import ablation as module_of_ablation
from lora_atlas.metrics import intervals
from lora_atlas.metrics.ablation import FACTORS, ablation, matched, parts, singles
from lora_atlas.metrics.ranking import chance
from lora_atlas.sections import Embedding
from lora_atlas.seeds import derive_seed
from lora_atlas.views import View

EMBEDDING = Embedding(dimensions=5, calibrations=["none"], calibration="crossfit", folds=5)
QUICK = {"subsets": 3, "confidence": 0.9, "seed": 7}
CROSSFIT, DIRECT = View("components", "crossfit", "L2"), View("whole", "none", "cosine")
LEAVES = {
    "attn1.to_q": "self_attention",
    "attn1.to_v": "self_attention",
    "attn2.to_k": "cross_attention",
    "attn2.to_v": "cross_attention",
    "ff.net.2": "feed_forward",
}
PLACES = {"down_blocks.0": "down", "mid_block": "mid", "up_blocks.1": "up"}
MODULES = {  # name: (component, block)
    f"unet.{place}.attentions.0.transformer_blocks.0.{leaf}": (component, block)
    for place, block in PLACES.items()
    for leaf, component in LEAVES.items()
}


def planted(loras, signal, kernels=("down", "up", "delta"), d: int = 40, seed: int = 0, modules=MODULES):
    """Grams, parameters, and the X (N, d) that they are of; `signal`: (kernel, component, block) → how far apart."""
    rng = np.random.default_rng(seed)
    artists = np.unique(loras["artist"].to_pylist(), return_inverse=True)[1]
    X = {
        kernel: {
            module: rng.normal(size=(len(loras), d))
            + signal(kernel, *place) * rng.normal(size=(artists.max() + 1, d))[artists]
            for module, place in modules.items()
        }
        for kernel in kernels
    }
    grams = {kernel: {module: x @ x.T for module, x in of.items()} for kernel, of in X.items()}
    numbers = {"down": 10, "up": 20, "delta": 30}
    parameters = {
        kernel: {module: numbers[kernel] * (2 if "ff" in module else 1) for module in modules} for kernel in kernels
    }
    return grams, parameters, X


def run(grams, parameters, loras, view=CROSSFIT, **changes) -> dict[tuple, dict]:
    rows = ablation(grams, parameters, loras, EMBEDDING, view=view, **QUICK | changes)
    tables.table("ablation", rows)  # every column, nothing else
    keyed = {(row["component"], row["block"], row["factor"], row["metric"]): row for row in rows}
    assert len(keyed) == len(rows)
    return keyed


def unit(X: np.ndarray) -> np.ndarray:
    return X / np.linalg.norm(X, axis=1, keepdims=True)


# --- planted signals


def test_a_signal_in_one_component_is_found_there_alone():
    loras = plan()
    grams, parameters, _ = planted(loras, lambda kernel, component, block: 0.9 * (component == "cross_attention"))
    found = run(grams, parameters, loras, subsets=8)
    expected = chance("mAP", 4, 24)
    for factor in FACTORS:
        there = found["cross_attention", "all", factor, "mAP"]
        assert there["value"] > 0.97 and there["chance"] == pytest.approx(expected)
        assert there["matched"] < there["value"] and there["matched_low"] < there["value"] - 0.05
        assert found["cross_attention", "all", factor, "Ward ARI"]["value"] > 0.97
        for component in ("self_attention", "feed_forward"):
            elsewhere = found[component, "all", factor, "mAP"]
            assert abs(elsewhere["value"] - expected) < 0.12, (component, factor)
            assert elsewhere["matched"] > elsewhere["value"]
            assert abs(found[component, "all", factor, "Ward ARI"]["value"]) < 0.25
        for block in PLACES.values():
            assert found["cross_attention", block, factor, "mAP"]["value"] > 0.9


def test_a_signal_in_one_block_and_one_factor_is_found_there_alone():
    loras = plan()
    grams, parameters, _ = planted(loras, lambda kernel, component, block: 3.0 * (kernel == "up" and block == "mid"))
    found = run(grams, parameters, loras, subsets=0)
    values = {key[1:3]: row["value"] for key, row in found.items() if (key[0], key[3]) == ("all", "mAP")}
    assert values["mid", "B"] > 0.97 and values["mid", "both"] > 0.9
    for place, factor in (("down", "B"), ("up", "B"), ("mid", "A"), ("mid", "delta"), ("all", "A")):
        assert abs(values[place, factor] - chance("mAP", 4, 24)) < 0.12


# --- against computations of their own


@pytest.mark.parametrize(
    ("component", "block", "factor"),
    [("all", "all", "delta"), ("self_attention", "all", "A"), ("all", "up", "both"), ("feed_forward", "mid", "B")],
)
def test_a_part_is_scored_as_the_features_of_its_modules_laid_end_to_end(component, block, factor):
    loras = plan()
    grams, parameters, X = planted(loras, lambda *place: 0.5)
    chosen = [m for m, (c, b) in MODULES.items() if component in ("all", c) and block in ("all", b)]
    rows = unit(np.concatenate([X[kernel][m] for kernel in FACTORS[factor] for m in chosen], axis=1))
    artists, split = (np.array(loras[name].to_pylist()) for name in ("artist", "split"))
    gallery = split == "gallery"
    K = rows @ rows.T
    vectors = embed(K, gallery, 5, ["crossfit"], folds=5, seed=derive_seed("folds", 7))["crossfit"].vectors
    far = euclidean_distances(vectors[~gallery], vectors[gallery])
    relevant = artists[~gallery][:, None] == artists[gallery]
    precision = [average_precision_score(hits, -d) for hits, d in zip(relevant, far, strict=True)]
    found = run(grams, parameters, loras, subsets=0)
    row = found[component, block, factor, "mAP"]
    assert row["value"] == pytest.approx(np.mean(precision))
    assert row["low"] <= row["value"] <= row["high"]
    count = sum(parameters[kernel][m] for kernel in FACTORS[factor] for m in chosen)
    total = sum(parameters[kernel][m] for kernel in FACTORS[factor] for m in MODULES)
    assert row["parameters"] == count and row["share"] == pytest.approx(count / total)

    clusters = AgglomerativeClustering(6, linkage="ward").fit_predict(together(K, 5))
    row = found[component, block, factor, "Ward ARI"]
    assert [row[key] for key in ("value", "low", "high")] == pytest.approx(agreement(artists, clusters))
    assert row["chance"] == 0


@pytest.mark.parametrize("distance", ["cosine", "L2"])
def test_without_a_basis_a_part_is_scored_by_the_distances_of_its_loras(distance):
    loras = plan()
    grams, parameters, X = planted(loras, lambda *place: 0.5, kernels=("delta",))
    found = run(grams, parameters, loras, View("whole", "none", distance), subsets=0)
    chosen = [m for m, (c, _) in MODULES.items() if c == "cross_attention"]
    rows = unit(np.concatenate([X["delta"][m] for m in chosen], axis=1))
    artists, split = (np.array(loras[name].to_pylist()) for name in ("artist", "split"))
    gallery = split == "gallery"
    far = euclidean_distances(rows[~gallery], rows[gallery])  # of vectors of one length, cosines give the same order
    relevant = artists[~gallery][:, None] == artists[gallery]
    precision = [average_precision_score(hits, -d) for hits, d in zip(relevant, far, strict=True)]
    row = found["cross_attention", "all", "delta", "mAP"]
    assert row["value"] == pytest.approx(np.mean(precision))
    numbers = np.unique(artists[~gallery], return_inverse=True)[1]
    assert (row["low"], row["high"]) == pytest.approx(intervals.mean(np.array(precision), numbers).interval(0.9))
    clusters = AgglomerativeClustering(6, linkage="ward").fit_predict(rows)
    row = found["cross_attention", "all", "delta", "Ward ARI"]
    assert [row[key] for key in ("value", "low", "high")] == pytest.approx(agreement(artists, clusters))


def agreement(artists: np.ndarray, clusters: np.ndarray) -> list[float]:
    """Adjusted Rand index, and its interval at level .9 by leaving one artist out."""
    ari = adjusted_rand_score(artists, clusters)
    without = [adjusted_rand_score(artists[artists != a], clusters[artists != a]) for a in np.unique(artists)]
    return [ari, *intervals.jackknife(ari, np.array(without), intervals.DIFFERENCE).interval(0.9)]


def test_norms_are_those_of_the_part_alone():
    """A LoRA that is ten times as large in one module is no other LoRA in the part that is that module."""
    loras = plan()
    grams, parameters, _ = planted(loras, lambda *place: 0.5, kernels=("delta",))
    plain = run(grams, parameters, loras, subsets=0)
    sizes = np.random.default_rng(1).lognormal(size=len(loras))
    loud = {
        m: K * np.outer(sizes, sizes) if MODULES[m] == ("feed_forward", "mid") else K for m, K in grams["delta"].items()
    }
    found = run({"delta": loud}, parameters, loras, subsets=0)
    for metric in ("mAP", "Ward ARI"):
        key = ("feed_forward", "mid", "delta", metric)
        assert found[key]["value"] == pytest.approx(plain[key]["value"])
    assert found["all", "mid", "delta", "mAP"]["value"] != plain["all", "mid", "delta", "mAP"]["value"]


# --- parts


def test_parts_are_every_component_and_block_that_there_is_and_the_whole():
    masks = {(name, place): mask for name, place, mask in parts(sorted(MODULES))}
    names, places = ("self_attention", "cross_attention", "feed_forward"), ("down", "mid", "up")
    assert set(masks) == {(n, p) for n in ("all", *names) for p in ("all", *places)}
    assert masks["all", "all"].all() and next(iter(masks)) == ("all", "all")
    # Each module is in one part of every division, so Gram matrices of the parts add up to the whole's.
    cells = [(name, place) for name in names for place in places]
    for division in ([(name, "all") for name in names], [("all", place) for place in places], cells):
        assert (sum(masks[key].astype(int) for key in division) == 1).all()


NESTED = {
    f"unet.{place}.transformer_blocks.0.{leaf}": (component, place.split("_")[0])
    for place in (
        "down_blocks.1.attentions.0",
        "mid_block.attentions.0",
        "up_blocks.1.attentions.0",
        "up_blocks.1.attentions.1",
        "up_blocks.2.attentions.0",
        "up_blocks.10.attentions.0",
    )
    for leaf, component in (("attn1.to_q", "self_attention"), ("attn2.to_k", "cross_attention"))
} | {"unet.up_blocks.2.resnets.0.conv1": ("convolution", "up")}


def test_blocks_are_named_ever_more_closely_and_none_twice():
    modules = sorted(NESTED)
    found = {(name, place): mask for name, place, mask in parts(modules)}
    assert [place for name, place in found if name == "all"] == [
        "all", "down", "mid", "up",
        "up_blocks.1", "up_blocks.1.attentions.0", "up_blocks.1.attentions.1",
        "up_blocks.2", "up_blocks.2.attentions.0", "up_blocks.2.resnets.0",
        "up_blocks.10",
    ]  # fmt: skip
    # What is one block alone is not named after its index too: down is down_blocks.1, and its attentions.0.
    assert {place for name, place in found if name == "convolution"} == {"all", "up"}
    assert {place for name, place in found if name == "self_attention"} == {
        "all", "down", "mid", "up", "up_blocks.1", "up_blocks.1.attentions.0", "up_blocks.1.attentions.1",
        "up_blocks.2", "up_blocks.10",
    }  # fmt: skip
    for (name, place), mask in found.items():
        expected = [
            (name in ("all", NESTED[m][0])) and (place in ("all", NESTED[m][1]) or f".{place}." in m) for m in modules
        ]
        assert mask.tolist() == expected, (name, place)


def test_a_signal_in_one_block_of_several_is_found_there_and_in_what_holds_it():
    loras = plan()
    strong = "unet.up_blocks.1.attentions.1"
    grams, parameters, X = planted(loras, lambda *place: 0.0, ("delta",), modules=NESTED)
    artists = np.unique(loras["artist"].to_pylist(), return_inverse=True)[1]
    for module in (m for m in NESTED if m.startswith(strong)):
        x = X["delta"][module] + 3 * np.random.default_rng(3).normal(size=(6, 40))[artists]
        grams["delta"][module] = x @ x.T
    found = run(grams, parameters, loras, DIRECT, subsets=0)
    values = {key[1]: row["value"] for key, row in found.items() if key[0] == "all" and key[3] == "mAP"}
    for place in ("up_blocks.1.attentions.1", "up_blocks.1", "up", "all"):
        assert values[place] > 0.9, place
    for place in ("down", "mid", "up_blocks.1.attentions.0", "up_blocks.2", "up_blocks.10"):
        assert abs(values[place] - chance("mAP", 4, 24)) < 0.12, place


def test_single_modules_are_parts_by_their_update(monkeypatch):
    loras = plan()
    grams, parameters, X = planted(loras, lambda *place: 0.7)
    found = run(grams, parameters, loras, DIRECT)
    of_modules = {key: row for key, row in found.items() if "." in key[1]}
    assert set(of_modules) == {
        (component, module, "delta", metric)
        for module, (component, _) in MODULES.items()
        for metric in ("mAP", "Ward ARI")
    }
    artists, split = (np.array(loras[name].to_pylist()) for name in ("artist", "split"))
    gallery = split == "gallery"
    for (component, module, _, metric), row in of_modules.items():
        assert row["parameters"] == parameters["delta"][module]
        assert row["share"] == pytest.approx(row["parameters"] / sum(parameters["delta"].values()))
        assert row["matched"] is row["matched_low"] is row["matched_high"] is None
        if metric == "mAP":
            rows = unit(X["delta"][module])
            near, relevant = rows[~gallery] @ rows[gallery].T, artists[~gallery][:, None] == artists[gallery]
            precision = [average_precision_score(hits, s) for hits, s in zip(relevant, near, strict=True)]
            assert row["value"] == pytest.approx(np.mean(precision)), (component, module)
    # A single module that is all there is of its component and block is told twice, and alike.
    feed, alone = "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.2", ("feed_forward", "mid", "delta", "mAP")
    assert found[alone]["value"] == pytest.approx(found["feed_forward", feed, "delta", "mAP"]["value"])
    monkeypatch.setattr(module_of_ablation, "MODULES", len(MODULES) - 1)
    few = run(grams, parameters, loras, DIRECT)
    assert few == {key: row for key, row in found.items() if key not in of_modules}


def test_every_module_is_a_part_of_its_own_called_by_its_component():
    modules = sorted(MODULES)
    found = singles(modules)
    assert [(component, name) for component, name, _ in found] == [(MODULES[m][0], m) for m in modules]
    assert (np.stack([mask for *_, mask in found]) == np.eye(len(modules), dtype=bool)).all()


def test_modules_of_no_known_place_are_other():
    found = {(name, place) for name, place, _ in parts(["unet.conv_in", "unet.time_embedding.linear_1"])}
    assert found == {("all", "all"), ("all", "other"), ("convolution", "all"), ("convolution", "other")} | {
        ("other", "all"), ("other", "other"),
    }  # fmt: skip


def test_both_factors_are_the_sum_of_the_two():
    loras = plan()
    grams, parameters, _ = planted(loras, lambda *place: 0.5)
    summed = {"delta": {m: grams["down"][m] + grams["up"][m] for m in MODULES}}
    counts = {"delta": {m: parameters["down"][m] + parameters["up"][m] for m in MODULES}}
    together_, alone = run(grams, parameters, loras, subsets=0), run(summed, counts, loras, subsets=0)
    for (component, block, factor, metric), row in together_.items():
        if factor == "both":
            expected = alone[component, block, "delta", metric]
            assert {**row, "factor": "delta"} == expected


def test_a_factor_that_was_not_computed_has_no_rows():
    loras = plan()
    grams, parameters, _ = planted(loras, lambda *place: 0.5, kernels=("delta", "up"))
    assert {key[2] for key in run(grams, parameters, loras, subsets=0)} == {"delta", "B"}


# --- random parts as large


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=40), st.data())
def test_random_parts_are_as_large_within_half_a_module(sizes, data):
    sizes = np.array(sizes)
    chosen = np.array(data.draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)).filter(any)))
    seed = data.draw(st.integers(0, 10**6))
    mask = matched(sizes, int(sizes[chosen].sum()), np.random.default_rng(seed))
    assert mask.any()
    assert abs(sizes[mask].sum() - sizes[chosen].sum()) <= sizes.max() / 2


def test_random_parts_take_every_module_alike():
    """Of modules of one size, each is in as many random parts as any other."""
    rng = np.random.default_rng(0)
    counts = sum(matched(np.full(20, 3), 15, rng).astype(int) for _ in range(2000))
    assert counts.sum() == 5 * 2000
    assert (np.abs(counts - 500) < 5 * np.sqrt(2000 * 0.25 * 0.75)).all()


def test_the_whole_is_matched_by_nothing_and_parts_by_their_random_peers():
    loras = plan()
    grams, parameters, _ = planted(loras, lambda kernel, component, block: 1.0 * (block == "up"), kernels=("delta",))
    found = run(grams, parameters, loras, subsets=6, confidence=0.5)
    spreads = 0
    for (component, block, _, _), row in found.items():
        null = [row[key] for key in ("matched_low", "matched", "matched_high")]
        if (component, block) == ("all", "all") or block in MODULES or (component == "feed_forward" and block != "all"):
            assert null == [None] * 3  # a module is a random part itself
        else:
            assert None not in null and row["matched_low"] <= row["matched_high"]
            spreads += row["matched_low"] < row["matched_high"]
    assert spreads > 20
    none = run(grams, parameters, loras, subsets=0)
    assert {row["matched"] for row in none.values()} == {None}
    for key, row in found.items():  # and they change no score
        assert none[key]["value"] == row["value"]


# --- what has no score


def test_a_part_on_which_all_are_alike_has_no_score_and_the_others_have():
    """A is frozen, say."""
    loras = plan()
    grams, parameters, _ = planted(loras, lambda *place: 1.0, kernels=("down", "up"))
    grams["down"] = {m: np.ones((len(loras), len(loras))) for m in MODULES}
    for (_, _, factor, _), row in run(grams, parameters, loras).items():
        null = [row[key] for key in ("value", "low", "high", "matched")]
        assert null == [None] * 4 if factor == "A" else None not in null[:3]


def test_without_queries_clusters_are_all_there_is():
    loras = plan(queries=0)
    grams, parameters, _ = planted(loras, lambda *place: 1.0, kernels=("delta",))
    for (_, _, _, metric), row in run(grams, parameters, loras).items():
        assert (row["value"] is None) == (metric == "mAP")


def test_matrices_of_other_loras_than_the_plans_are_refused():
    grams, parameters, _ = planted(plan(), lambda *place: 1.0, kernels=("delta",))
    with pytest.raises(ValueError, match="matrices of 36 LoRAs and a plan of 30; rerun the Gram stage"):
        run(grams, parameters, plan(artists=5))


def test_a_gallery_too_small_for_a_basis_is_an_error_and_no_null():
    loras = plan(artists=3, gallery=1)
    grams, parameters, _ = planted(loras, lambda *place: 1.0, kernels=("delta",))
    with pytest.raises(ValueError, match="at least 4 gallery LoRAs; there are 3"):
        run(grams, parameters, loras)


def test_rows_come_out_the_same_twice_and_in_any_order_of_the_modules():
    loras = plan()
    grams, parameters, _ = planted(loras, lambda *place: 0.5, kernels=("delta",))
    turned = {kernel: dict(reversed(of.items())) for kernel, of in grams.items()}
    assert list(run(grams, parameters, loras).items()) == list(run(turned, parameters, loras).items())
    other = run(grams, parameters, loras, seed=8)
    assert any(row["matched"] != other[key]["matched"] for key, row in run(grams, parameters, loras).items())
