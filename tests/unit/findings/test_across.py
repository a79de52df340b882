"""Claims of several studies side by side."""

import numpy as np
import pytest

from lora_atlas import tables
from lora_atlas.descriptors import CONTROL, TRAINING, WEIGHTS, Descriptor, stored
from lora_atlas.findings import across
from lora_atlas.findings.across import AcrossError
from lora_atlas.findings.claims import ARTIST, CONTROLS, UNSEEN
from lora_atlas.metrics.relative import RETRIEVAL


def write(paths, output):
    return across.write(paths, output, permutations=49, confidence=0.95, seed=0)


def claims(path, study: str, *replicates: str, **verdicts: str):
    rows = [
        {"claim": name.replace("_", " "), "sentence": f"{name} here", "verdict": verdict.replace("_", " "),
         "numbers": "mAP 1", "p": 0.0001 if verdict == "held" else 0.25, "seeds": 3}
        for name, verdict in verdicts.items()
    ]  # fmt: skip
    tables.write(path, "claims", rows, {"study": study, "base": f"base of {study}", "replicates": replicates})
    return path


def test_every_claim_has_a_row_and_every_study_a_column(tmp_path):
    first = claims(tmp_path / "1.parquet", "painters", only_here="held", roses_are_red="undecided")
    second = claims(tmp_path / "2.parquet", "designers", roses_are_red="held", violets_are_blue="did_not_hold")
    write([first, second], tmp_path / "ACROSS.md")
    page = (tmp_path / "ACROSS.md").read_text()
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert table == [
        "| claim | `painters` | `designers` |",
        "|---|---|---|",
        "| roses are red | **undecided** (0.250; 3 seeds) | **held** (< 0.001; 3 seeds) |",
        "| only here | **held** (< 0.001; 3 seeds) | – |",
        "| violets are blue | – | **did not hold** (0.250; 3 seeds) |",
    ]
    assert "- `designers`: base `base of designers`" in page


def test_how_well_the_weights_find_an_artist_stands_first(tmp_path):
    known = tables.metadata(tables.read(claims(tmp_path / "1.parquet", "painters", roses_are_red="held"), "claims"))
    rows = tables.read(tmp_path / "1.parquet", "claims").to_pylist()
    for who, numbers in ((ARTIST, "mAP 0.9, chance 0.2"), (UNSEEN, "mAP 0.8, chance 0.3")):
        rows.append({**rows[0], "claim": CONTROLS.format("delta_gradient", who), "numbers": numbers})
    rows.append({**rows[0], "claim": CONTROLS.format("delta", ARTIST), "numbers": "mAP 0.7"})
    tables.write(tmp_path / "1.parquet", "claims", rows, known)
    write([tmp_path / "1.parquet"], tmp_path / "ACROSS.md")
    page = (tmp_path / "ACROSS.md").read_text()
    table = [line for line in page.splitlines() if line.startswith("|")][:4]
    assert table == [
        "| study | by | an artist | an artist that nothing was fitted on |",
        "|---|---|---|---|",
        "| `painters` | `delta_gradient` | mAP 0.9, chance 0.2 | mAP 0.8, chance 0.3 |",
        "| `painters` | `delta` | mAP 0.7 | – |",
    ]
    assert "| roses are red | **held** (< 0.001; 3 seeds) |" in page


def test_without_studies_it_says_what_to_run(tmp_path):
    with pytest.raises(AcrossError, match="no study here has claims; run `snakemake findings`"):
        write([], tmp_path / "ACROSS.md")


# --- two bases

ARTISTS = 6
DESCRIBED = (
    Descriptor(WEIGHTS, kernel="delta", modules="gradient", scale="unit"),
    Descriptor(TRAINING, extractor="clip", gallery="training", query="training"),
    Descriptor(CONTROL, control="norm"),
)


def study(folder, seed: int, width: int, pictures: str = "p"):
    """Tables of a study, whose LoRAs lie as those of the others of this seed do, in a space of this width."""
    rng, turn = np.random.default_rng(seed), np.random.default_rng([seed, width])
    X = np.repeat(rng.normal(size=(ARTISTS, 5)), 4, 0) + 0.1 * rng.normal(size=(ARTISTS * 4, 5))
    X = X @ np.linalg.qr(turn.normal(size=(width, width)))[0][:5]
    plan, vectors = [], []
    for i, x in enumerate(X):
        lora = {
            "artist": f"artist{i // 4}", "lora": f"artist{i // 4}/{i % 4:02}", "genre": None,
            "split": "query" if i % 4 == 3 else "gallery",
        }  # fmt: skip
        plan.append(lora | {"seed": i, "pictures": [f"{pictures}{i}"], "overlap": 0.0})
        for scenario in (tables.WHOLE, tables.TOGETHER):
            vectors.append(lora | {"scenario": scenario, "calibration": "none", "fold": -1, "vector": x.tolist()})
    tables.write(folder / "plan.parquet", "plan", plan)
    told = {"descriptors": stored(list(DESCRIBED))}
    tables.write(folder / "tables/retrieval.parquet", "retrieval", [], told)
    for each in DESCRIBED:
        tables.write(folder / f"embeddings/{each.name}.parquet", "embeddings", vectors)


def test_studies_of_the_same_loras_on_two_bases_are_compared_by_their_common_seeds(tmp_path):
    for name, width, seeds in (("unet", 5, "123"), ("transformer", 9, "234")):
        claims(tmp_path / name / "tables/claims.parquet", name, *(f"seed{n}" for n in seeds), roses_are_red="held")
        study(tmp_path / name, 0, width)
        for n in seeds:
            study(tmp_path / name / "variants" / f"seed{n}", int(n), width)
    rows = write(
        [tmp_path / name / "tables/claims.parquet" for name in ("transformer", "unet")], tmp_path / "ACROSS.md"
    )
    tables.write(tmp_path / "ACROSS.parquet", "bases", rows)
    # Training pictures are the same on both, and a control is none of the weights' business.
    assert {(row["replicate"], row["descriptor"]) for row in rows} == {
        ("seed2", "delta_gradient"), ("seed3", "delta_gradient"),
    }  # fmt: skip
    assert all(row["value"] > 0.8 for row in rows if row["metric"] in ("CKA", RETRIEVAL) and row["level"] == "LoRAs")
    page = (tmp_path / "ACROSS.md").read_text()
    assert "## The same LoRAs on two bases: `transformer` and `unet`" in page and "over 2 seeds" in page
    (row,) = [line for line in page.splitlines() if line.startswith("| updates ΔW, modules weighted")]
    assert row.count("2 of 2") >= 3


@pytest.mark.parametrize("other", ["another base, other pictures", "the same base", "a study that was not finished"])
def test_other_studies_are_no_pair(tmp_path, other):
    names = ["one", "two"]
    for name in names:
        claims(tmp_path / name / "tables/claims.parquet", "one" if other == "the same base" else name, a_claim="held")
        study(tmp_path / name, 1, 5, pictures=name if "pictures" in other else "p")
    if "finished" in other:
        (tmp_path / "two/tables/retrieval.parquet").unlink()
    assert write([tmp_path / name / "tables/claims.parquet" for name in names], tmp_path / "ACROSS.md") == []
    assert "two bases" not in (tmp_path / "ACROSS.md").read_text()
