"""Charts of the evaluation: they are drawn, and what they show is what the tables say."""

import numpy as np
import pytest

from lora_atlas import tables
from lora_atlas.atlas import evaluation
from lora_atlas.atlas.charts import save
from lora_atlas.tables import KNOWN

KINDS = {"delta": "weights", "factors": "weights", "clip_s8_g1": "generated pictures", "norm": "control"}


def row(**values):
    return {"value": 0.5, "low": 0.4, "high": 0.6} | values


@pytest.fixture
def retrieval(tmp_path):
    base = {"scenario": KNOWN, "calibration": "crossfit", "distance": "L2", "level": "artist", "metric": "mAP"}
    rows = [row(descriptor=d, chance=0.1, queries=4, **base) for d in KINDS]
    told = {"kinds": KINDS, "calibration": "crossfit"}
    tables.write(tmp_path / "r.parquet", "retrieval", rows, told)
    return tables.read(tmp_path / "r.parquet", "retrieval")


def charts(retrieval):
    worth = [
        row(descriptor=d, pictures=m, metric="mAP", seconds=None, value=0.1 * m)
        for d in ("clip_s8_g1", "clip_s8_g3")
        for m in (1, 2, 4)
    ]
    pairs = [(a, b) for i, a in enumerate(KINDS) for b in list(KINDS)[i + 1 :]]
    structure = [
        row(left=a, right=b, metric=m, null=0.0, null_high=0.1, p=0.01)
        | ({"value": None, "low": None, "high": None} if b == "norm" else {})
        for a, b in pairs
        for m in ("CKA", "RSA", "Procrustes", "mutual kNN")
    ]
    ablation = [
        row(component=c, block=b, factor=f, parameters=9, share=0.3, metric="mAP", chance=0.1)
        | {"matched": None, "matched_low": None, "matched_high": None}
        for c in ("all", "feed_forward")
        for b in ("all", "up")
        for f in ("delta", "both")
    ]
    drift = [
        row(descriptor="delta", calibration=c, component=k, explained=0.2)
        | {"held_out": 0.5 if c == "none" else None, "predicted": 0.45 if c == "none" else None}
        for c in ("none", "crossfit")
        for k in (1, 2, 3)
    ]
    return {
        "worth": evaluation.worth_curve(tables.table("worth", worth), retrieval),
        "structure": evaluation.structure_matrix(tables.table("structure", structure), KINDS),
        "ablation": evaluation.ablation_chart(tables.table("ablation", ablation)),
        "drift": evaluation.drift_chart(tables.table("drift", drift), "delta"),
    }


@pytest.mark.parametrize("name", ["worth", "structure", "ablation", "drift"])
def test_a_chart_is_drawn_with_ink_on_it(retrieval, tmp_path, name):
    from PIL import Image

    path = tmp_path / f"{name}.png"
    save(charts(retrieval)[name], path)
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 50
    save(charts(retrieval)[name], path.with_suffix(".svg"))
    assert "NaN" not in path.with_suffix(".svg").read_text()


def test_curves_and_weights_stand_on_one_scale(retrieval):
    found = charts(retrieval)["worth"].to_dict()
    data = [value for rows in found["datasets"].values() for value in rows]
    curves = [d for d in data if "seconds" in d]
    assert {(d["descriptor"], d["pictures"], d["value"]) for d in curves if d["descriptor"] == "clip_s8_g1"} == {
        ("clip_s8_g1", m, 0.1 * m) for m in (1, 2, 4)
    }
    weights = {(d["descriptor"], d["value"]) for d in data if d["descriptor"] in ("delta", "factors")}
    assert weights == {("delta", 0.5), ("factors", 0.5)}


def test_every_pair_is_shown_on_both_sides(retrieval):
    found = charts(retrieval)["structure"].to_dict()
    cells = [d for rows in found["datasets"].values() for d in rows if d.get("metric") == "CKA"]
    assert len(cells) == 12 and {(d["left"], d["right"]) for d in cells} == {(d["right"], d["left"]) for d in cells}
