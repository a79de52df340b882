"""Claims of several studies side by side."""

import pytest

from lora_atlas import tables
from lora_atlas.findings.across import AcrossError, write


def claims(path, study: str, **verdicts: str):
    rows = [
        {"claim": name.replace("_", " "), "sentence": f"{name} here", "verdict": verdict.replace("_", " "),
         "numbers": "mAP 1", "p": 0.0001 if verdict == "held" else 0.25, "seeds": 3}
        for name, verdict in verdicts.items()
    ]  # fmt: skip
    tables.write(path, "claims", rows, {"study": study, "base": f"base of {study}"})
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


def test_without_studies_it_says_what_to_run(tmp_path):
    with pytest.raises(AcrossError, match="no study here has claims; run `snakemake findings`"):
        write([], tmp_path / "ACROSS.md")
