"""One gradient on a study: scores that are known, what is left out, sketches that are the gradients'."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from painters import BASE, PAINTERS, PROBE, SETTINGS, pictures
from safetensors.numpy import save_file

from lora_atlas import tables
from lora_atlas.attribution import study
from lora_atlas.attribution.measure import measure
from lora_atlas.attribution.study import ABSENT, ALARM, BOTH, LORAS, NONE, AttributionError, ask, read, summed
from lora_atlas.pictures.decode import encode_png
from lora_atlas.sections import Training
from lora_atlas.weights.modules import write_modules
from lora_atlas.weights.sketch import Hashes, project, projected_dense

ARTISTS = ("ada", "bob", "cyd", "dot")
MODULES = ["unet.a", "unet.b"]


def plan() -> pa.Table:
    rows = []
    for artist in ARTISTS:
        for number, (split, count) in enumerate((("gallery", 3), ("gallery", 3), ("gallery", 3), ("query", 3))):
            rows.append(
                {
                    "lora": f"{artist}/{number:02d}", "artist": artist, "genre": None, "split": split, "seed": 0,
                    "pictures": [f"{artist}{number}{i}" for i in range(count)], "overlap": 0.0,
                }
            )  # fmt: skip
    return tables.table("plan", rows)


def keep(folder, loras, wanted, W, g, base):
    """Products and Gram matrices of LoRAs, pictures' gradients and the base's own, each (modules, n, d)."""
    modules = MODULES[: len(W)]
    header = {"modules": modules, "pictures": wanted, "loras": loras}
    tensors = {"values": np.einsum("mpk,mnk->mpn", g, W), "reference": np.einsum("mpk,mnk->mpn", base, W)}
    save_file(
        {k: v.astype(np.float32) for k, v in tensors.items()}, folder / "products.safetensors",
        metadata={"lora_atlas": json.dumps(header)},
    )  # fmt: skip
    grams = {name: w @ w.T for name, w in zip(modules, W, strict=True)}
    write_modules(folder / "modules.safetensors", loras, {"delta": grams}, {"delta": dict.fromkeys(modules, 1)})


@pytest.fixture
def files(tmp_path):
    """LoRAs and gradients as plain vectors of two modules: an artist's own direction, something that all share, noise.
    The second module is noise alone, and loud."""
    rng = np.random.default_rng(0)
    own = {artist: rng.normal(size=30) for artist in ARTISTS}
    rows, everybody = plan().to_pylist(), rng.normal(size=30)

    def vectors(artists, noise: float):
        first = np.stack([own[artist] if artist else np.zeros(30) for artist in artists])
        first = first + everybody * 3 + noise * rng.normal(size=first.shape)
        return np.stack([first, 4 * rng.normal(size=first.shape)])

    W = vectors([row["artist"] for row in rows], 0.5)
    wanted = sorted({p for row in rows for p in row["pictures"]})
    g = vectors([p[:3] for p in wanted], 1.0)
    base = vectors([None] * 40, 1.0)
    keep(tmp_path, [row["lora"] for row in rows], wanted, W, g, base)
    return tmp_path, W, g, wanted


def frame(files, base=None):
    folder = files[0]
    rows = ask(folder / "products.safetensors", folder / "modules.safetensors", plan(), base=base, seed=0)
    return tables.table("attribution_queries", rows)


def test_scores_are_those_of_the_vectors_themselves(files):
    """Oracle: cosines of the sums of a set's gradients with the gallery's LoRAs, both modules alike."""
    _, W, g, wanted = files
    found = frame(files).to_pandas()
    rows = plan().to_pylist()
    gallery = [i for i, row in enumerate(rows) if row["split"] == "gallery"]
    X = np.concatenate(W, 1)[gallery]
    for row in rows:
        if row["split"] != "query":
            continue
        query = np.concatenate(g, 1)[[wanted.index(p) for p in row["pictures"]]].mean(0)
        for centring, Y in ((NONE, X), (LORAS, X - X.mean(0))):
            cosine = Y @ query / np.linalg.norm(Y, axis=1)
            hits = np.array([rows[i]["artist"] == row["artist"] for i in gallery])[np.argsort(-cosine)]
            expected = (np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean()
            one = found[(found["lora"] == row["lora"]) & (found["centring"] == centring) & (found["metric"] == "mAP")]
            one = one[one["pictures"].isna() & (one["modules"] == "plain") & (one["scenario"] == "whole")]
            assert one["value"].item() == pytest.approx(expected, abs=1e-6)


def test_a_weighting_of_the_base_silences_what_says_nothing(files):
    found = frame(files, {"unet.a": 1.0, "unet.b": 1e-3}).to_pandas()
    found = found[(found["metric"] == "mAP") & (found["centring"] == BOTH) & found["pictures"].isna()]
    mean = found.groupby(["scenario", "modules"])["value"].mean()
    assert mean["whole", "gradient"] > 0.95 > mean["whole", "plain"]
    assert mean["whole, unseen artist", "gradient"] > 0.95
    assert set(found["modules"]) == {"plain", "gradient", "consensus"}


def test_no_way_to_centre_tells_whose_a_query_is(tmp_path):
    """LoRAs and gradients of noise alone: whatever is less its mean, artists are found as by chance. Less the mean of
    all artists but the query's own they were found at .77, where chance is .27."""
    rng = np.random.default_rng(3)
    artists = [f"artist{n}" for n in range(6)]
    found = []
    for study_seed in range(4):
        rows = [
            {
                "lora": f"{artist}/{i:02}", "artist": artist, "genre": None, "split": "gallery" if i < 4 else "query",
                "seed": 0, "pictures": [f"{artist} {i} {n}" for n in range(2)], "overlap": 0.0,
            }
            for artist in artists for i in range(6)
        ]  # fmt: skip
        wanted = sorted({p for row in rows for p in row["pictures"]})
        W, g, base = (rng.normal(size=(n, 2000)) for n in (len(rows), len(wanted), 40))
        keep(tmp_path, [row["lora"] for row in rows], wanted, W[None], g[None], base[None])
        given = tables.table("plan", rows)
        kept = (tmp_path / "products.safetensors", tmp_path / "modules.safetensors")
        found += ask(*kept, given, base=None, seed=study_seed)
    table = tables.table("attribution_queries", found).to_pandas()
    table = table[(table["metric"] == "mAP") & table["pictures"].isna() & (table["modules"] == "plain")]
    for (scenario, centring), part in table.groupby(["scenario", "centring"]):
        error = part["value"].std() / np.sqrt(len(part) / 2)  # the queries of an artist are not quite independent
        assert abs(part["value"].mean() - part["chance"].mean()) < 4 * error, (scenario, centring)
    assert set(table["centring"]) == set(study.CENTRINGS)


def test_sets_of_every_size_are_asked_and_none_that_is_too_small(files):
    found = frame(files)
    assert set(found.to_pandas()["pictures"].dropna()) == {1, 2}
    rows = summed(found, confidence=0.95)
    tables.table("attribution", rows)
    whole, one = (
        next(row for row in rows if row["pictures"] == m and row["metric"] == "mAP" and row["centring"] == LORAS)
        for m in (None, 1)
    )
    assert whole["value"] > one["value"] > one["chance"] and whole["low"] <= whole["value"] <= whole["high"]
    assert whole["queries"] == 4


def test_a_false_alarm_is_asked_for_where_the_artist_is_left_out(files):
    found = frame(files).to_pandas()
    alarms = found[found["metric"] == ALARM]
    assert set(alarms["scenario"]) == {"whole", ABSENT} and set(alarms["chance"]) == {0.05}
    assert alarms["value"].between(0, 1).all()


def test_fitted_weights_never_saw_the_half_that_is_ranked(files, monkeypatch):
    seen = []
    plain = study.module_weights

    def watched(how, names, stack, fitted, **options):
        seen.append((how, tuple(fitted)))
        return plain(how, names, stack, fitted, **options)

    monkeypatch.setattr(study, "module_weights", watched)
    frame(files)
    artists = np.array(plan()["artist"].to_pylist())
    halves = [set(artists[list(fitted)]) for how, fitted in seen if how == "consensus" and len(fitted) < 12]
    assert len(halves) == 2 and not halves[0] & halves[1]


@pytest.mark.fault("tables and pages", "gradients' products that are damaged", "refused by name")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.write_bytes(b"x"), "absent or damaged"),
        (lambda path: path.unlink(), "absent or damaged"),
    ],
)
def test_damaged_products_are_named(files, change, words):
    path = files[0] / "products.safetensors"
    change(path)
    with pytest.raises(AttributionError, match=f"{path}: {words}"):
        read(path)


def test_products_of_another_plan_are_refused(files):
    other = tables.table("plan", plan().to_pylist()[:-1])
    with pytest.raises(AttributionError, match="not those of the plan"):
        ask(files[0] / "products.safetensors", files[0] / "modules.safetensors", other, base=None, seed=0)


def test_a_sketch_of_a_matrix_is_that_of_its_factors():
    from lora_atlas.loras.factors import Update

    rng, hashes = np.random.default_rng(5), Hashes()
    updates = [Update("m", rng.normal(size=(3, 17)).astype("f4"), rng.normal(size=(12, 3)).astype("f4")) for _ in "ab"]
    dense = np.stack([update.B @ update.A for update in updates])
    found = projected_dense("m", dense, 64, hashes)
    np.testing.assert_allclose(found, [project(update, 64, hashes) for update in updates], rtol=1e-4, atol=1e-4)


def test_measured_pictures_have_products_and_features(case, tmp_path):
    """Of the real base: the products that an ask of one set has, and sketches whose cosines are near the gradients'."""
    painters = PAINTERS[:3]
    shown = {f"{p}{i}": x for p in painters for i, x in enumerate(pictures(p, range(40, 43)))}
    kept = [
        {
            "picture": name, "artist": name[:-1], "genre": None, "image": {"bytes": encode_png(x), "path": name},
            "width": 64, "height": 64, "source": "test", "licence": None, "subject": None,
            "status": "kept", "reason": None,
        }
        for name, x in shown.items()
    ]  # fmt: skip
    rows = [
        {
            "lora": lora, "artist": lora.split("/")[0], "genre": None, "split": "gallery", "seed": 0,
            "pictures": [name for name in shown if name[:-1] == lora.split("/")[0]], "overlap": 0.0,
        }
        for lora in case.known.loras
        if lora.split("/")[0] in painters
    ]  # fmt: skip
    loras = {row["lora"]: case.known.files[case.known.loras.index(row["lora"])].path for row in rows}
    training = Training(**TRAINING)
    count, device = measure(
        tables.table("plan", rows), tables.table("pictures", kept), loras, BASE, SETTINGS, training, PROBE,
        device="cpu", output=tmp_path / "p.safetensors", features=tmp_path / "f.parquet",
    )  # fmt: skip
    found = read(tmp_path / "p.safetensors")
    assert (count, device) == (9 + SETTINGS.reference, "cpu")
    assert found.values.shape == (len(found.modules), 9, 6) and found.reference.shape[1] == SETTINGS.reference
    features = tables.read(tmp_path / "f.parquet", "features")
    assert features["picture"].to_pylist() == found.pictures
    vectors = np.stack(features["vector"].to_pylist())
    from lora_atlas.diffusion.attribution import gradients

    names = [module.removeprefix("unet.") for module in found.modules]
    held, _ = gradients(case.ask.question, case.ask.latents([shown[name] for name in found.pictures]), names)
    G = torch.cat([held[name].flatten(1) for name in names], 1).numpy()
    exact, near = (X @ X.T / np.outer(*[np.linalg.norm(X, axis=1)] * 2) for X in (G, vectors))
    np.testing.assert_allclose(near, exact, atol=0.15)
    apart = np.triu_indices(9, 1)
    assert np.corrcoef(near[apart], exact[apart])[0, 1] > 0.95
    with pytest.raises(AttributionError, match=r"attribution\.memory_mb"):
        measure(
            tables.table("plan", rows), tables.table("pictures", kept), loras, BASE,
            SETTINGS | {"memory_mb": 1, "samples": 1, "reference": 0}, training, PROBE,
            device="cpu", output=tmp_path / "p2.safetensors", features=tmp_path / "f2.parquet",
        )  # fmt: skip


TRAINING = {
    "resolution": 64, "aspect_ratio_buckets": False, "caption": "a painting", "rank": 4, "alpha": 4,
    "targets": ["attention", "feed_forward"], "init": "shared", "noise": "own", "steps": 1, "batch": 1,
    "learning_rate": 1e-3, "warmup": 0, "lr_schedule": "constant", "weight_decay": 0.0, "max_grad_norm": 1.0,
    "loss": "epsilon", "min_snr_gamma": 5.0,
}  # fmt: skip
