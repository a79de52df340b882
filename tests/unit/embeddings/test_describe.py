"""Descriptors: their names, a LoRA as the mean of its pictures, and tables of one shape from weights and pictures."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from sklearn.decomposition import PCA

from lora_atlas import tables
from lora_atlas.descriptors import KINDS, Descriptor, compared, descriptors, kinds
from lora_atlas.embeddings.describe import (
    DescriptorError,
    embed_collection,
    embed_controls,
    embed_pictures,
    embed_weights,
    inner_products,
    lora_means,
)
from lora_atlas.loras.factors import Update
from lora_atlas.loras.files import read_lora, write_lora
from lora_atlas.sections import Embedding, Extractor
from lora_atlas.tables import KNOWN, TOGETHER, UNSEEN, WHOLE, WHOLE_UNSEEN
from lora_atlas.weights.gram import gram, read_gram, write_gram
from lora_atlas.weights.modules import module_grams, read_modules, write_modules
from lora_atlas.weights.weighting import product

ARTISTS = ("ada", "bea", "cyd", "dot")
PER_ARTIST, PICTURES = 4, 2  # three of the gallery and one query; pictures of each
WEIGHTS = {
    "kernels": ["delta", "factors"],
    "modules": ["plain"],
    "scales": ["unit", "raw"],
    "controls": [],
    "components": None,
    "blocks": None,
}
EXTRACTORS = {
    "clip": {"library": "open_clip", "model": "a", "pretrained": None},
    "dino": {"library": "timm", "model": "b", "pretrained": None},
    "mean_colour": {"library": "control", "model": "mean_colour", "pretrained": None},
}
GENERATION = {
    "prompts": ["a painting"], "seeds": [0], "num_inference_steps": [8, 16], "guidance_scale": [3], "worth": None
}  # fmt: skip
SETTINGS = ["s8_g3", "s16_g3"]
SPACES = [
    *((TOGETHER, "none"), (KNOWN, "none"), (KNOWN, "rescale"), (KNOWN, "crossfit"), (WHOLE, "none")),
    *((UNSEEN, "none"), (WHOLE_UNSEEN, "none")),
]
EMBEDDING = Embedding(dimensions=3, calibrations=["none", "rescale", "crossfit"], calibration="crossfit", folds=4)
SIDES = {
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (12, 10),
    "unet.up_blocks.1.attentions.0.transformer_blocks.0.ff.net.2": (20, 8),
}
BASE = dict(zip(SIDES, (0.5, 3.0), strict=True))  # module → mean squared gradient


def study(weights=WEIGHTS, extractors=EXTRACTORS, generation=GENERATION) -> list[Descriptor]:
    return descriptors({"weights": weights, "extractors": extractors, "generation": generation})


def of_weights(weights) -> list[Descriptor]:
    return [descriptor for descriptor in study(weights) if descriptor.kernel]


def typed(extractors) -> dict[str, Extractor]:
    return {name: Extractor(**each) for name, each in extractors.items()}


def of_pictures(extractors) -> list[Descriptor]:
    return [descriptor for descriptor in study(extractors=extractors) if descriptor.extractor]


def make_plan(artists=ARTISTS, per_artist: int = PER_ARTIST, of_queries: int = PICTURES) -> pa.Table:
    rows = [
        {
            "lora": f"{artist}/{n:02}",
            "artist": artist,
            "genre": None if artist == "dot" else "strokes",
            "split": "query" if n == per_artist - 1 else "gallery",
            "seed": n,
            "pictures": [f"{artist}-{n}-{i}" for i in range(of_queries if n == per_artist - 1 else PICTURES)],
            "overlap": 0.0,
        }
        for artist in artists
        for n in range(per_artist)
    ]
    return tables.table("plan", rows)


def make_features(plan: pa.Table, source: str, d: int, seed: int) -> pa.Table:
    """Shuffled rows: every training picture, or two generated pictures of every LoRA; artists' means are shared."""
    rng = np.random.default_rng(seed)
    means = {artist: rng.normal(size=d) for artist in sorted(set(plan["artist"].to_pylist()))}
    rng = np.random.default_rng([seed, *source.encode()])
    rows = []
    for lora in plan.to_pylist():
        for i, picture in enumerate(lora["pictures"]):
            known = source == "training"
            rows.append(
                {
                    "picture": picture if known else f"{source}-{lora['lora']}-{i}",
                    "artist": lora["artist"],
                    "lora": None if known else lora["lora"],
                    "vector": rng.uniform(0.5, 3) * (means[lora["artist"]] + 0.5 * rng.normal(size=d)),
                }
            )
    return tables.table("features", [rows[i] for i in rng.permutation(len(rows))])


@pytest.fixture(scope="module")
def plan() -> pa.Table:
    return make_plan()


@pytest.fixture(scope="module")
def grams(tmp_path_factory, plan) -> dict[str, Path]:
    """Gram files of LoRAs that share a part per artist."""
    folder, rng = tmp_path_factory.mktemp("weights"), np.random.default_rng(0)
    means = {(a, m): rng.normal(size=(2, w)) for a in ARTISTS for m, (w, _) in SIDES.items()}
    for lora in plan.to_pylist():
        updates = {
            m: Update(m, means[lora["artist"], m] + 0.5 * rng.normal(size=(2, w)), 1 + rng.normal(size=(h, 2)))
            for m, (w, h) in SIDES.items()
        }
        write_lora(folder / f"{lora['lora']}.safetensors", updates, {})
    ids = plan["lora"].to_pylist()
    paths = {kernel: folder / f"{kernel}.safetensors" for kernel in WEIGHTS["kernels"]}
    for kernel, path in paths.items():
        write_gram(path, ids, gram([folder / f"{i}.safetensors" for i in ids], kernel), kernel)
    return paths


@pytest.fixture(scope="module")
def features(tmp_path_factory, plan) -> dict[tuple[str, str], Path]:
    folder, found = tmp_path_factory.mktemp("features"), {}
    for seed, (name, extractor) in enumerate(EXTRACTORS.items()):
        control = extractor["library"] == "control"
        for source in ["training"] if control else ["training", *SETTINGS]:
            found[name, source] = folder / name / f"{source}.parquet"
            tables.write(found[name, source], "features", make_features(plan, source, 3 if control else 30, seed))
    return found


@pytest.fixture(scope="module")
def single(grams, plan, tmp_path_factory) -> Path:
    """The Gram matrices of single modules of the same LoRAs."""
    path, ids = tmp_path_factory.mktemp("modules") / "all.safetensors", plan["lora"].to_pylist()
    folder = grams["delta"].parent
    write_modules(path, ids, *module_grams([folder / f"{i}.safetensors" for i in ids], ["delta", "down", "up"]))
    return path


def run_weights(
    folder: Path, grams, plan, weights=WEIGHTS, embedding=EMBEDDING, seed: int = 0, single=None, base=None
) -> dict[str, Path]:
    asked = of_weights(weights)
    outputs = {descriptor.name: folder / f"{descriptor.name}.parquet" for descriptor in asked}
    embed_weights(grams, single, base, plan, asked, weights, embedding, seed=seed, outputs=outputs)
    return outputs


def run_pictures(
    folder: Path, features, plan, extractors=EXTRACTORS, embedding=EMBEDDING, seed: int = 0
) -> dict[str, Path]:
    asked = of_pictures(extractors)
    outputs = {descriptor.name: folder / f"{descriptor.name}.parquet" for descriptor in asked}
    embed_pictures(features, plan, asked, typed(extractors), embedding, seed=seed, outputs=outputs)
    return outputs


def vectors(path: Path, scenario: str = KNOWN, calibration: str = "none") -> np.ndarray:
    rows = tables.read(path, "embeddings").to_pylist()
    chosen = [row["vector"] for row in rows if (row["scenario"], row["calibration"]) == (scenario, calibration)]
    return np.array(chosen)


def up_to_sign(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found, expected * signs, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def is_gallery(plan: pa.Table) -> np.ndarray:
    return np.array(plan["split"].to_pylist()) == "gallery"


# --- names


def test_weight_descriptors_are_kernels_weightings_and_scales():
    found = {d.name: (d.kernel, d.modules, d.scale) for d in of_weights(WEIGHTS)}
    assert found == {
        "delta": ("delta", "plain", "unit"),
        "delta_raw": ("delta", "plain", "raw"),
        "factors": ("factors", "plain", "unit"),
        "factors_raw": ("factors", "plain", "raw"),
    }
    some = {"kernels": ["delta", "up"], "modules": ["gradient", "plain", "learnt", "kfac"], "scales": ["raw"]}
    assert {d.name: (d.kernel, d.modules, d.scale) for d in of_weights(WEIGHTS | some)} == {
        "delta_gradient": ("delta", "gradient", "unit"),
        "delta_raw": ("delta", "plain", "raw"),
        "delta_learnt": ("delta", "learnt", "unit"),
        "delta_kfac": ("delta", "kfac", "unit"),
        "up_gradient": ("up", "gradient", "unit"),
        "up_raw": ("up", "plain", "raw"),
    }


def test_picture_descriptors_say_what_knows_the_gallery_and_what_asks():
    found = of_pictures({name: EXTRACTORS[name] for name in ("clip", "mean_colour")})
    assert {d.name: (d.extractor, d.gallery, d.query) for d in found} == {
        "clip_training": ("clip", "training", "training"),
        "clip_s8_g3": ("clip", "s8_g3", "s8_g3"),
        "clip_training_to_s8_g3": ("clip", "s8_g3", "training"),
        "clip_s8_g3_to_training": ("clip", "training", "s8_g3"),
        "clip_s16_g3": ("clip", "s16_g3", "s16_g3"),
        "clip_training_to_s16_g3": ("clip", "s16_g3", "training"),
        "clip_s16_g3_to_training": ("clip", "training", "s16_g3"),
        "mean_colour_training": ("mean_colour", "training", "training"),
    }


def test_every_descriptor_of_one_source_has_a_kind():
    found = kinds(study(WEIGHTS | {"modules": ["plain", "learnt"], "controls": ["norm", "set_size"]}))
    assert found == dict.fromkeys(("delta", "delta_raw", "factors", "factors_raw"), "weights") | {
        "delta_learnt": "weights and labels",
        "clip_training": "training pictures",
        "clip_s8_g3": "generated pictures",
        "clip_s16_g3": "generated pictures",
        "dino_training": "training pictures",
        "dino_s8_g3": "generated pictures",
        "dino_s16_g3": "generated pictures",
        "mean_colour_training": "control",
        "norm": "control",
        "set_size": "control",
    }
    assert set(found.values()) == set(KINDS)


# --- means


def row(picture: str, lora: str | None, vector: list[float]) -> dict:
    return {"picture": picture, "artist": "ada", "lora": lora, "vector": vector}


def test_a_lora_is_the_mean_of_its_training_pictures_in_the_order_of_the_plan():
    plan = make_plan(["ada"], 2)  # ada-0-0, ada-0-1 | ada-1-0, ada-1-1
    plan = plan.set_column(5, tables.SCHEMAS["plan"].field("pictures"), pa.array([["x", "y"], ["z", "y"]]))
    features = tables.table(
        "features", [row("z", None, [0, 5]), row("y", None, [0, 2]), row("other", None, [9, 9]), row("x", None, [4, 0])]
    )
    np.testing.assert_allclose(lora_means(features, plan, "training", unit=False), [[2, 1], [0, 3.5]])
    np.testing.assert_allclose(lora_means(features, plan, "training", unit=True), [[0.5, 0.5], [0, 1]])


def test_a_lora_is_the_mean_of_all_that_it_generated():
    plan = make_plan(["ada"], 2)
    made = [row("p", "ada/01", [3, 4]), row("q", "ada/00", [0, 7]), row("r", "ada/01", [5, 0]), row("s", "b", [9, 9])]
    features = tables.table("features", made)
    np.testing.assert_allclose(lora_means(features, plan, "s8_g3", unit=False), [[0, 7], [4, 2]])
    np.testing.assert_allclose(lora_means(features, plan, "s8_g3", unit=True), [[0, 1], [0.8, 0.4]])


def test_a_vector_of_zeros_has_no_direction_and_makes_no_nan():
    features = tables.table("features", [row("p", "ada/00", [0, 0]), row("q", "ada/01", [0, 2])])
    assert (lora_means(features, make_plan(["ada"], 2), "s8_g3", unit=True) == [[0, 0], [0, 1]]).all()


def test_loras_without_their_pictures_are_named(plan):
    training, made = make_features(plan, "training", 4, 0), make_features(plan, "s8_g3", 4, 0)
    lacking = training.filter(pc.not_equal(training["picture"], "bea-2-1"))  # one of two
    with pytest.raises(DescriptorError, match=r"features of 'training': .*\['bea/02'\]; rerun the features stage"):
        lora_means(lacking, plan, "training", unit=True)
    lacking = made.filter(pc.is_in(made["lora"], pa.array(["ada/01", "dot/03"])))
    with pytest.raises(DescriptorError) as caught:
        lora_means(lacking, plan, "s8_g3", unit=True)
    named = [lora for lora in plan["lora"].to_pylist() if repr(lora) in str(caught.value)]
    assert "'s8_g3'" in str(caught.value) and set(named) == set(plan["lora"].to_pylist()) - {"ada/01", "dot/03"}


# --- from weights


def test_weights_become_tables_of_every_scenario_and_calibration(tmp_path, plan, grams):
    loras = plan.select(["lora", "artist", "genre", "split"]).to_pylist()
    for name, path in run_weights(tmp_path, grams, plan).items():
        found = tables.read(path, "embeddings")
        rows = found.to_pylist()
        for scenario, calibration in SPACES:
            chosen = [r for r in rows if (r["scenario"], r["calibration"]) == (scenario, calibration)]
            assert [{key: r[key] for key in loras[0]} for r in chosen] == loras
            folds = {artist: {r["fold"] for r in chosen if r["artist"] == artist} for artist in ARTISTS}
            parts = sorted(next(iter(fold)) for fold in folds.values())
            assert all(len(fold) == 1 for fold in folds.values())
            assert parts == ([0, 0, 1, 1] if scenario in (UNSEEN, WHOLE_UNSEEN) else [0] * 4)
        assert len(rows) == len(SPACES) * len(loras)
        header = tables.metadata(found)
        assert header["descriptor"] == name and header["dimensions"] == len(rows[0]["vector"]) == 3
        assert len(header["explained"]) == len(header["held_out_ratio"]) == 3
        assert 0 < sum(header["explained"]) < 1 and all(0 < ratio < 1 for ratio in header["held_out_ratio"])


def dense_rows(grams, plan) -> dict[str, np.ndarray]:
    """ΔW, and A beside B, of every LoRA, flattened."""
    found = {"delta": [], "factors": []}
    for lora in plan["lora"].to_pylist():
        updates = read_lora(grams["delta"].parent / f"{lora}.safetensors").updates.values()
        found["delta"].append(np.concatenate([(u.B.astype(float) @ u.A).ravel() for u in updates]))
        found["factors"].append(np.concatenate([x.ravel() for u in updates for x in (u.A, u.B)]).astype(float))
    return {kernel: np.stack(rows) for kernel, rows in found.items()}


def test_weight_vectors_are_those_of_a_dense_pca_of_the_gallery(tmp_path, plan, grams):
    outputs, gallery = run_weights(tmp_path, grams, plan), is_gallery(plan)
    for kernel, X in dense_rows(grams, plan).items():
        for suffix, rows in (("_raw", X), ("", X / np.linalg.norm(X, axis=1, keepdims=True))):
            pca = PCA(3, svd_solver="full").fit(rows[gallery])
            up_to_sign(vectors(outputs[kernel + suffix]), pca.transform(rows))
            up_to_sign(vectors(outputs[kernel + suffix], TOGETHER), PCA(3, svd_solver="full").fit_transform(rows))
            header = tables.metadata(tables.read(outputs[kernel + suffix], "embeddings"))
            np.testing.assert_allclose(header["explained"], pca.explained_variance_ratio_, rtol=1e-6)


def test_a_subset_of_components_is_another_description(tmp_path, plan, grams):
    one = WEIGHTS | {"kernels": ["delta"], "scales": ["unit"]}
    whole = run_weights(tmp_path / "whole", grams, plan, one)["delta"]
    part = run_weights(tmp_path / "part", grams, plan, one | {"components": ["feed_forward"]})["delta"]
    same = run_weights(tmp_path / "same", grams, plan, one | {"blocks": ["up"]})["delta"]  # the same module
    assert (vectors(part) == vectors(same)).all() and not np.allclose(vectors(part), vectors(whole))
    with pytest.raises(ValueError, match=r"weights\.components: \['projection'\] are not in these LoRAs"):
        run_weights(tmp_path / "none", grams, plan, one | {"components": ["projection"]})


def test_a_gram_file_of_other_loras_is_named(tmp_path, plan, grams):
    for other in (plan.slice(1), make_plan(ARTISTS[::-1])):
        with pytest.raises(DescriptorError, match=r"delta\.safetensors: its LoRAs are not those of the plan"):
            run_weights(tmp_path, grams, other)
    assert not list(tmp_path.iterdir())


# --- from pictures


def test_pictures_become_tables_of_the_same_shape(tmp_path, plan, features):
    outputs = run_pictures(tmp_path, features, plan)
    assert len(outputs) == 15
    for name, path in outputs.items():
        rows = tables.read(path, "embeddings")
        assert rows.num_rows == len(SPACES) * plan.num_rows and tables.metadata(rows)["descriptor"] == name


def test_the_gallery_is_known_by_one_source_and_the_queries_ask_by_another(tmp_path, plan, features):
    outputs, gallery = run_pictures(tmp_path, features, plan), is_gallery(plan)
    means = {}
    for source in ("training", "s8_g3"):
        rows = tables.read(features["clip", source], "features").to_pylist()
        means[source] = []
        for lora in plan.to_pylist():
            mine = [r for r in rows if r["lora"] == lora["lora"] or (r["picture"] in lora["pictures"])]
            assert len(mine) == PICTURES
            means[source].append(np.mean([np.array(r["vector"]) / np.linalg.norm(r["vector"]) for r in mine], 0))
        means[source] = np.array(means[source])
    assert not np.isclose(means["training"], means["s8_g3"]).any()
    for name, known, asked in [
        ("clip_training", "training", "training"),
        ("clip_s8_g3", "s8_g3", "s8_g3"),
        ("clip_training_to_s8_g3", "s8_g3", "training"),
        ("clip_s8_g3_to_training", "training", "s8_g3"),
    ]:
        expected = PCA(3, svd_solver="full").fit(means[known][gallery])
        scores = np.where(gallery[:, None], expected.transform(means[known]), expected.transform(means[asked]))
        up_to_sign(vectors(outputs[name]), scores)


def test_a_control_keeps_the_length_of_its_vectors(tmp_path, plan, features):
    rows = tables.read(features["mean_colour", "training"], "features").to_pylist()
    of = {r["picture"]: np.array(r["vector"]) for r in rows}
    X = np.array([np.mean([of[p] for p in lora["pictures"]], 0) for lora in plan.to_pylist()])
    pca = PCA(3, svd_solver="full").fit(X[is_gallery(plan)])
    found = vectors(run_pictures(tmp_path, features, plan)["mean_colour_training"])
    up_to_sign(found, pca.transform(X))


# --- one budget for all


@pytest.mark.parametrize("dimensions", [3, 100])
def test_all_descriptors_have_the_same_number_of_dimensions(tmp_path, plan, grams, features, dimensions):
    embedding = EMBEDDING | {"dimensions": dimensions}
    real = {name: extractor for name, extractor in EXTRACTORS.items() if name != "mean_colour"}  # a colour has three
    outputs = run_weights(tmp_path, grams, plan, embedding=embedding)
    pictures = {key: path for key, path in features.items() if key[0] in real}
    outputs |= run_pictures(tmp_path, pictures, plan, real, embedding)
    found = {name: tables.read(path, "embeddings") for name, path in outputs.items()}
    assert len(found) == 18
    # 12 LoRAs of the gallery in 4 folds: a fold's basis is fitted on 9, which span 8 directions
    assert {tables.metadata(table)["dimensions"] for table in found.values()} == {min(dimensions, 8)}
    for table in found.values():
        known = [row["vector"] for row in table.to_pylist() if row["scenario"] == KNOWN]
        assert {len(vector) for vector in known} == {min(dimensions, 8)}


def test_all_descriptors_divide_the_gallery_into_the_same_folds(tmp_path, plan, features):
    twins = {"clip": EXTRACTORS["clip"], "twin": EXTRACTORS["clip"]}
    both = {(name, source): features["clip", source] for name in twins for source in ("training", *SETTINGS)}
    outputs = run_pictures(tmp_path / "first", both, plan, twins)
    for scenario, calibration in [(KNOWN, "crossfit"), (UNSEEN, "none")]:
        one, other = (vectors(outputs[f"{name}_training"], scenario, calibration) for name in twins)
        assert (one == other).all()
    other = run_pictures(tmp_path / "other", both, plan, twins, seed=1)["clip_training"]
    assert (vectors(other) == vectors(outputs["clip_training"])).all()
    assert not np.allclose(
        vectors(other, calibration="crossfit"), vectors(outputs["clip_training"], calibration="crossfit")
    )


def test_the_same_tables_give_the_same_bytes(tmp_path, plan, grams, features):
    first = run_weights(tmp_path / "a", grams, plan) | run_pictures(tmp_path / "a", features, plan)
    again = run_weights(tmp_path / "b", grams, plan) | run_pictures(tmp_path / "b", features, plan)
    assert all(first[name].read_bytes() == again[name].read_bytes() for name in first)


# --- studies that are too small


def small_study(folder: Path, artists, per_artist: int, d: int = 8) -> tuple[pa.Table, dict]:
    plan, found = make_plan(artists, per_artist), {}
    for source in ("training", *SETTINGS):
        found["clip", source] = folder / "features" / f"{source}.parquet"
        tables.write(found["clip", source], "features", make_features(plan, source, d, 0))
    return plan, found


CLIP = {"clip": EXTRACTORS["clip"]}


def test_fewer_than_four_artists_have_no_basis_without_the_artist_in_question(tmp_path):
    plan, features = small_study(tmp_path, ARTISTS[:3], 4)
    for path in run_pictures(tmp_path / "out", features, plan, CLIP).values():
        rows = tables.read(path, "embeddings").to_pylist()
        assert {(r["scenario"], r["calibration"]) for r in rows} == set(SPACES[:-2])
        assert len(rows) == 5 * plan.num_rows


def test_a_gallery_too_small_for_a_basis_names_the_descriptor(tmp_path):
    plan, features = small_study(tmp_path, ARTISTS[:3], 2)
    with pytest.raises(DescriptorError, match=r"clip_training: .*at least 4 gallery LoRAs; there are 3"):
        run_pictures(tmp_path / "out", features, plan, CLIP)


# --- descriptors that know nothing


def knows_nothing(path: Path, name: str, plan: pa.Table) -> None:
    """Vectors of zero in every scenario, of a table that is whole otherwise."""
    found = tables.read(path, "embeddings")
    rows = found.to_pylist()
    assert [r["lora"] for r in rows] == plan["lora"].to_pylist() * len(SPACES)
    assert list(dict.fromkeys((r["scenario"], r["calibration"]) for r in rows)) == SPACES
    assert {tuple(r["vector"]) for r in rows} == {(0.0,)}
    for scenario in (UNSEEN, WHOLE_UNSEEN):
        folds = {r["artist"]: r["fold"] for r in rows if r["scenario"] == scenario}
        assert sorted(folds.values()) == [0, 0, 1, 1]
    header = tables.metadata(found)
    assert header["descriptor"] == name and header["dimensions"] == 1 and header["explained"] == [0.0]


def test_pictures_whose_gallery_is_all_alike_know_nothing(tmp_path, plan, features):
    rows = tables.read(features["clip", "s8_g3"], "features").to_pylist()
    queries = {r["lora"] for r in plan.to_pylist() if r["split"] == "query"}
    one = [1.0] + [0.0] * 29
    alike = [r | {"vector": r["vector"] if r["lora"] in queries else one} for r in rows]
    path = tmp_path / "alike.parquet"
    tables.write(path, "features", alike)
    outputs = run_pictures(tmp_path / "out", {**features, ("clip", "s8_g3"): path}, plan)
    for name in ("clip_s8_g3", "clip_training_to_s8_g3"):
        knows_nothing(outputs[name], name, plan)
    for name in ("clip_training", "clip_s8_g3_to_training", "clip_s16_g3"):  # whose galleries are others
        assert np.abs(vectors(outputs[name])).max() > 0.1


def test_weights_whose_gallery_is_all_alike_know_nothing(tmp_path, plan):
    gallery = is_gallery(plan)
    X = np.random.default_rng(0).normal(size=(len(plan), 12))
    X[gallery] = X[0]
    K = X @ X.T
    ids, grams = plan["lora"].to_pylist(), {"delta": tmp_path / "delta.safetensors"}
    write_gram(grams["delta"], ids, {("self_attention", "down"): K}, "delta")
    single = tmp_path / "all.safetensors"
    names = list(SIDES)
    write_modules(single, ids, {"delta": dict.fromkeys(names, K)}, {"delta": dict.fromkeys(names, 1)})
    weights = WEIGHTS | {"kernels": ["delta"], "modules": ["plain", "unit", "gradient", "consensus", "learnt"]}
    outputs = run_weights(tmp_path / "out", grams, plan, weights, single=single, base=BASE)
    assert len(outputs) == 6
    for name, path in outputs.items():
        knows_nothing(path, name, plan)


def test_a_control_whose_gallery_is_all_alike_knows_nothing(tmp_path):
    """Sets of one size in the gallery and of another among the queries: each query is as near to all."""
    plan = make_plan(of_queries=PICTURES - 1)
    assert {len(r["pictures"]) for r in plan.to_pylist()} == {PICTURES, PICTURES - 1}
    spectra = np.ones((len(plan), 3, 2))
    spectra[~is_gallery(plan)] *= 2
    outputs = {name: tmp_path / f"{name}.parquet" for name in ("set_size", "norm", "spectrum")}
    embed_controls(spectra, plan, list(outputs), EMBEDDING, seed=0, outputs=outputs)
    for name, path in outputs.items():
        knows_nothing(path, name, plan)


# --- controls of the weights


def apart_as(X: np.ndarray, numbers: np.ndarray) -> None:
    """The cosine of two rows tells how far their numbers are apart: their own cosine, as one number each, would be 1 of
    any two, and a control that names the artist exactly would be at chance."""
    angles = np.arccos((X @ X.T).clip(-1, 1))
    expected = np.abs(numbers[:, None] - numbers) * np.pi / 2 / np.ptp(numbers)
    np.testing.assert_allclose(angles, expected, atol=2e-3)  # an arc cosine near 1, of float32


def test_a_control_of_one_number_that_names_the_artist_finds_it(tmp_path):
    plan = make_plan()
    artists = plan["artist"].to_pylist()
    level = {artist: 1.5**n for n, artist in enumerate(sorted(set(artists)))}
    spectra = np.array([[[level[artist]]] for artist in artists])
    embed_controls(spectra, plan, ["norm"], EMBEDDING, seed=0, outputs={"norm": tmp_path / "norm.parquet"})
    X, gallery = vectors(tmp_path / "norm.parquet", WHOLE), is_gallery(plan)
    nearest = (X[~gallery] @ X[gallery].T).argmax(1)
    found = np.array(artists)[gallery][nearest]
    assert (found == np.array(artists)[~gallery]).all()


def test_controls_are_norms_spectra_and_sizes_of_sets(tmp_path):
    plan = make_plan()
    rng = np.random.default_rng(0)
    spectra = rng.uniform(0.5, 2, size=(len(plan), 3, 2))
    controls = ["norm", "spectrum", "set_size"]
    outputs = {name: tmp_path / f"{name}.parquet" for name in controls}
    embed_controls(spectra, plan, controls, EMBEDDING, seed=0, outputs=outputs)
    read = {name: tables.read(path, "embeddings").to_pylist() for name, path in outputs.items()}
    norms = np.log(np.sqrt((spectra**2).sum((1, 2))))
    apart_as(vectors(outputs["norm"], WHOLE), norms)
    knows_nothing(outputs["set_size"], "set_size", plan)  # all sets are of one size
    places = {name: [(row["scenario"], row["calibration"], row["lora"]) for row in rows] for name, rows in read.items()}
    assert places["norm"] == places["spectrum"] == places["set_size"]


def test_what_is_depicted_is_the_subjects_of_the_pictures(tmp_path):
    """Cosines of counts of subjects; pictures without one say nothing."""
    rows = make_plan().to_pylist()
    rows = [row | {"pictures": [f"{row['lora']}-{i}" for i in range(3)]} for row in rows]
    rng = np.random.default_rng(0)
    shown = {p: str(rng.integers(4)) for row in rows for p in row["pictures"][:2]}
    plan, path = tables.table("plan", rows), tmp_path / "content.parquet"
    ones = np.ones((len(plan), 1, 1))
    embed_controls(ones, plan, ["content"], EMBEDDING, shown=shown, seed=0, outputs={"content": path})
    counts = np.array([[sum(shown.get(p) == str(k) for p in row["pictures"]) for k in range(4)] for row in rows], float)
    counts /= np.linalg.norm(counts, axis=1, keepdims=True)
    X = vectors(path, WHOLE)
    np.testing.assert_allclose(X @ X.T, counts @ counts.T, atol=1e-5)
    embed_controls(ones, plan, ["content"], EMBEDDING, seed=0, outputs={"content": path})
    knows_nothing(path, "content", plan)


def test_the_size_of_a_set_tells_loras_apart_where_sizes_differ(tmp_path):
    rows = make_plan().to_pylist()
    rows = [row | {"pictures": [f"{row['lora']}-{i}" for i in range(1 + n % 3)]} for n, row in enumerate(rows)]
    path = tmp_path / "set_size.parquet"
    plan = tables.table("plan", rows)
    embed_controls(np.ones((len(plan), 1, 1)), plan, ["set_size"], EMBEDDING, seed=0, outputs={"set_size": path})
    apart_as(vectors(path, WHOLE), np.log([len(row["pictures"]) for row in rows]))


def test_a_spectrum_is_that_of_the_lora_at_norm_one(tmp_path):
    plan = make_plan()
    spectra = np.random.default_rng(1).uniform(0.5, 2, size=(len(plan), 3, 2))
    for name, values in (("a", spectra), ("b", spectra * np.linspace(1, 9, len(plan))[:, None, None])):
        outputs = {"spectrum": tmp_path / f"{name}.parquet"}
        embed_controls(values, plan, ["spectrum"], EMBEDDING, seed=0, outputs=outputs)
    # Of whole vectors only the inner products are defined beyond rounding: where directions are alike they may turn.
    for scenario in (TOGETHER, KNOWN, WHOLE):
        a, b = (vectors(tmp_path / f"{n}.parquet", scenario) for n in "ab")
        assert a @ a.T == pytest.approx(b @ b.T, abs=1e-5) and np.abs(a).max() > 0.01


# --- without a basis


def of_part(path: Path, scenario: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows of the plan and their vectors, of each part."""
    rows = [r for r in tables.read(path, "embeddings").to_pylist() if r["scenario"] == scenario]
    part = np.array([r["fold"] for r in rows])
    X = np.array([r["vector"] for r in rows], np.float64)
    return [(np.flatnonzero(part == p), X[part == p]) for p in np.unique(part)]


def test_without_a_basis_inner_products_are_those_of_the_loras(tmp_path, plan, grams, features):
    outputs = run_weights(tmp_path, grams, plan) | run_pictures(tmp_path, features, plan)
    expected = {}
    for kernel, X in dense_rows(grams, plan).items():
        expected |= {f"{kernel}_raw": X, kernel: X / np.linalg.norm(X, axis=1, keepdims=True)}
    for (extractor, source), path in features.items():
        unit = EXTRACTORS[extractor]["library"] != "control"
        expected[f"{extractor}_{source}"] = lora_means(tables.read(path, "features"), plan, source, unit=unit)
    for name, X in expected.items():
        K = X @ X.T
        for scenario, parts in ((WHOLE, 1), (WHOLE_UNSEEN, 2)):
            found = of_part(outputs[name], scenario)
            assert len(found) == parts and sum(len(rows) for rows, _ in found) == len(plan)
            for rows, V in found:
                assert pytest.approx(K[np.ix_(rows, rows)], rel=1e-5, abs=1e-6 * np.abs(K).max()) == V @ V.T
    assert set(expected) == {d.name for d in compared(of_weights(WEIGHTS) + of_pictures(EXTRACTORS))}


# --- modules that do not count alike


def per_module(grams, plan) -> list[np.ndarray]:
    """ΔW (N, d) of each module."""
    folder = grams["delta"].parent
    files = [read_lora(folder / f"{lora}.safetensors").updates for lora in plan["lora"].to_pylist()]
    return [np.stack([(u[m].B.astype(float) @ u[m].A).ravel() for u in files]) for m in SIDES]


def test_weighted_modules_are_dense_updates_that_are_weighted(tmp_path, plan, grams, single):
    weights = WEIGHTS | {"modules": ["plain", "unit", "gradient"], "kernels": ["delta"], "scales": ["unit"]}
    outputs = run_weights(tmp_path, grams, plan, weights, single=single, base=BASE)
    parts = per_module(grams, plan)
    expected = {
        "delta": np.concatenate(parts, 1),
        "delta_unit": np.concatenate([X / np.linalg.norm(X, axis=1, keepdims=True) for X in parts], 1),
        "delta_gradient": np.concatenate([X * np.sqrt(BASE[m]) for m, X in zip(SIDES, parts, strict=True)], 1),
    }
    assert set(outputs) == set(expected)
    gallery = is_gallery(plan)
    for name, X in expected.items():
        X = X / np.linalg.norm(X, axis=1, keepdims=True)
        up_to_sign(vectors(outputs[name]), PCA(3, svd_solver="full").fit(X[gallery]).transform(X))
        V = vectors(outputs[name], WHOLE)
        assert pytest.approx(X @ X.T, abs=1e-5) == V @ V.T


def test_the_metric_of_the_base_is_a_kernel_of_its_own(tmp_path, plan, grams, single):
    ids, found, parameters = read_modules(single)
    known = next(iter(SIDES))  # the metric knows one module
    moved = 2 * found["down"][known]
    path = tmp_path / "kfac.safetensors"
    write_modules(path, ids, found | {"kfac": {known: moved}}, parameters | {"kfac": {known: 1}})
    weights = WEIGHTS | {"modules": ["kfac"], "kernels": ["delta", "factors"]}
    (only,) = (outputs := run_weights(tmp_path, grams, plan, weights, single=path))
    V = vectors(outputs[only], WHOLE)
    norms = np.sqrt(np.diag(moved))
    assert only == "delta_kfac" and pytest.approx(moved / np.outer(norms, norms), abs=1e-5) == V @ V.T


@pytest.mark.parametrize("kernel", ["delta", "factors", "up"])
def test_one_kernel_needs_no_other(tmp_path, plan, grams, kernel):
    """Neither the Gram file nor the single modules of a kernel that nobody asked for."""
    folder, ids = grams["delta"].parent, plan["lora"].to_pylist()
    paths = [folder / f"{i}.safetensors" for i in ids]
    mine = {"factors": ["down", "up"]}.get(kernel, [kernel])
    single, whole = tmp_path / "all.safetensors", tmp_path / "gram.safetensors"
    write_modules(single, ids, *module_grams(paths, mine))
    write_gram(whole, ids, gram(paths, kernel), kernel)
    how = ["plain", "unit", "gradient", "consensus", "learnt"]
    weights = WEIGHTS | {"modules": how, "kernels": [kernel], "scales": ["unit"]}
    outputs = run_weights(tmp_path / "out", {kernel: whole}, plan, weights, single=single, base=BASE)
    names = [kernel, *(f"{kernel}_{one}" for one in how[1:])]
    assert list(outputs) == (names if kernel == "delta" else names[:-1])
    single_grams = {m: sum(gram_of[m] for gram_of in read_modules(single)[1].values()) for m in SIDES}
    gallery = np.flatnonzero(is_gallery(plan))
    for descriptor in of_weights(weights):
        V = vectors(outputs[descriptor.name], WHOLE)
        K = product(descriptor.modules, single_grams, base=BASE, artists=plan["artist"].to_pylist()).scaled(gallery)
        assert pytest.approx(K, abs=1e-5) == V @ V.T


def test_single_modules_that_are_absent_are_named(tmp_path, plan, grams, single):
    asked = WEIGHTS | {"modules": ["unit"], "scales": ["unit"]}
    with pytest.raises(DescriptorError, match=r"delta_unit: needs the Gram matrices of single modules"):
        run_weights(tmp_path / "out", grams, plan, asked)
    ids, found, parameters = read_modules(single)
    path = tmp_path / "all.safetensors"
    write_modules(path, ids, {"delta": found["delta"]}, {"delta": parameters["delta"]})
    with pytest.raises(DescriptorError, match=r"lack the kernel 'down'; rerun"):
        run_weights(tmp_path / "out", grams, plan, asked, single=path)
    kfac = asked | {"modules": ["kfac"], "kernels": ["delta"]}  # never the plain updates under its name
    with pytest.raises(DescriptorError, match=r"lack the kernel 'kfac'; rerun"):
        run_weights(tmp_path / "out", grams, plan, kfac, single=single)
    with pytest.raises(DescriptorError, match=r"all\.safetensors: its LoRAs are not those of the plan"):
        run_weights(tmp_path / "out", grams, plan.slice(1), asked | {"kernels": ["delta"]}, single=path)
    with pytest.raises(DescriptorError, match=r"no module is in components \['projection'\] and blocks None"):
        run_weights(tmp_path / "out", grams, plan, asked | {"components": ["projection"]}, single=single)
    with pytest.raises(DescriptorError, match=r"delta_gradient: weights\.modules: gradient .*another base"):
        run_weights(tmp_path / "out", grams, plan, asked | {"modules": ["gradient"]}, single=single, base={"x": 1.0})


def test_a_subset_of_components_holds_for_single_modules_too(tmp_path, plan, grams, single):
    asked = WEIGHTS | {"modules": ["unit"], "kernels": ["delta"], "components": ["feed_forward"]}
    part = vectors(run_weights(tmp_path / "part", grams, plan, asked, single=single)["delta_unit"], WHOLE)
    same = asked | {"components": None, "blocks": ["up"]}
    assert (
        vectors(run_weights(tmp_path / "same", grams, plan, same, single=single)["delta_unit"], WHOLE) == part
    ).all()
    X = per_module(grams, plan)[1]
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    assert part @ part.T == pytest.approx(X @ X.T, abs=1e-5)


@pytest.mark.parametrize("how", ["consensus", "learnt"])
def test_what_is_fitted_never_saw_the_half_that_is_ranked(tmp_path, how):
    """A gallery LoRA's weights change: in its own half only its own inner products do."""
    artists = [f"artist{n}" for n in range(8)]
    plan, rng = make_plan(artists), np.random.default_rng(0)
    ids, gallery = plan["lora"].to_pylist(), is_gallery(plan)
    of = np.repeat(np.arange(8), PER_ARTIST)
    names = [f"unet.up_blocks.{n}.attentions.0.proj_in" for n in range(4)]
    means = rng.normal(size=(8, 40))
    # Three modules that show the artists more and less clearly, and noise.
    X = [noise * rng.normal(size=(len(of), 40)) + means[of] * (n < 3) for n, noise in enumerate((0.3, 0.6, 1, 1))]

    def run(folder: Path, X: list[np.ndarray]) -> Path:
        single = folder / "all.safetensors"
        grams = {"delta": {name: x @ x.T for name, x in zip(names, X, strict=True)}}
        write_modules(single, ids, grams, {"delta": dict.fromkeys(names, 1)})
        weights = WEIGHTS | {"kernels": ["delta"], "modules": [how]}
        return run_weights(folder, {}, plan, weights, single=single)[f"delta_{how}"]

    plain = run(tmp_path / "plain", X)
    for one, moves in ((np.flatnonzero(gallery)[4], True), (np.flatnonzero(~gallery)[1], False)):
        changed = [x.copy() for x in X]
        for x in changed[:2]:
            x[one] = 3 * rng.normal(size=40)
        found = run(tmp_path / f"changed{one}", changed)
        for scenario in (WHOLE_UNSEEN, UNSEEN):
            for (rows, V), (same, W) in zip(of_part(plain, scenario), of_part(found, scenario), strict=True):
                assert (rows == same).all()
                others = rows != one
                before, after = V[others] @ V[others].T, W[others] @ W[others].T
                if one in rows or not moves:
                    assert after == pytest.approx(before, abs=2e-5)
                else:  # here it is one of those that the weights were fitted on
                    assert np.abs(after - before).max() > 1e-3
        known = np.arange(len(ids)) != one
        before, after = (vectors(path, WHOLE)[known] for path in (plain, found))
        assert (np.abs(after @ after.T - before @ before.T).max() > 1e-3) == moves


# --- a collection as it is


def test_a_collection_has_the_cosines_of_its_loras_and_no_queries(tmp_path, plan, grams):
    ids, parts = read_gram(grams["delta"])
    rows = [{"lora": i, "artist": None if i.startswith("ada") else i[:3], "genre": None, "space": "x"} for i in ids]
    X = per_module(grams, plan)
    for subset, modules in (({}, X), ({"components": ["feed_forward"]}, X[1:]), ({"blocks": ["down"]}, X[:1])):
        path = tmp_path / "collection.parquet"
        embed_collection(rows, parts, path, **subset)
        found = tables.read(path, "embeddings")
        V, flat = np.array(found["vector"].to_pylist()), np.concatenate(modules, 1)
        flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
        assert pytest.approx(flat @ flat.T, abs=1e-5) == V @ V.T
        assert found["lora"].to_pylist() == ids
        assert found["artist"].to_pylist() == [row["artist"] or "" for row in rows]
        kinds = {(r["scenario"], r["calibration"], r["fold"], r["split"]) for r in found.to_pylist()}
        assert kinds == {(WHOLE, "none", 0, "gallery")}
        assert tables.metadata(found)["dimensions"] == V.shape[1]


# --- inner products


def test_inner_products_are_those_of_every_descriptor_of_one_source(plan, grams, single, features, tmp_path):
    weights = WEIGHTS | {"modules": ["plain", "gradient", "consensus", "learnt"]}
    asked = [d for d in study(weights) if not d.control]
    found = inner_products(grams, single, BASE, features, plan, asked, weights=weights, extractors=typed(EXTRACTORS))
    assert list(found) == [d.name for d in compared(asked)] and len(asked) > len(found)
    outputs = run_weights(tmp_path, grams, plan, weights, single=single, base=BASE)
    outputs |= run_pictures(tmp_path, features, plan)
    for name, K in found.items():
        V = vectors(outputs[name], WHOLE)
        assert pytest.approx(K, rel=1e-5, abs=1e-6 * np.abs(K).max()) == V @ V.T
