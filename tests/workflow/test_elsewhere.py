"""One checkout, studies in other folders: by `-s` and `--directory`, and as a module of somebody's own Snakefile."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lora_atlas import tables

pytestmark = pytest.mark.slow

# Weights alone are asked, and one descriptor of them, so that nothing is generated.
CHANGES = {
    "extractors": {"clip": None, "dino": None},
    "weights": {"kernels": ["delta"], "modules": ["plain"], "controls": ["norm"]},
    "variants": {},
}
MODULE = """
configfile: "settings.yaml"

module atlas:
    snakefile: "{snakefile}"
    config: config["atlas"]
    prefix: "out"

use rule * from atlas as atlas_*

rule report:
    default_target: True
    input: "out/results/tiny/tables/retrieval.parquet"
    output: "report.txt"
    shell: "wc -c < {{input}} > {{output}}"
"""


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    environment.pop("PYTHONPATH", None)
    snakemake = str(Path(sys.executable).with_name("snakemake"))
    return subprocess.Popen(
        [snakemake, "--cores", "1", *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen) -> str:
    text = process.communicate(timeout=1800)[0]
    assert process.returncode == 0, text[-4000:]
    return text


@pytest.fixture(scope="module")
def places(copied, tmp_path_factory):
    """A folder with its study's configuration, and one with a Snakefile of its own."""
    plain, module = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("module")
    study = yaml.safe_load((copied.root / "tiny.yaml").read_text()) | CHANGES
    (plain / "config.yaml").write_text(yaml.safe_dump(study))  # goes over the project's own
    (module / "settings.yaml").write_text(yaml.safe_dump({"atlas": study}))
    (module / "Snakefile").write_text(MODULE.format(snakefile=copied.root / "Snakefile"))
    return plain, module


@pytest.mark.fault("Snakemake and SLURM", "one checkout used from two folders at once", "the same tables in both")
def test_two_folders_with_one_checkout_and_a_module_give_the_same_tables(copied, places):
    plain, module = places
    before = {path for path in copied.root.rglob("*") if "__pycache__" not in path.parts}
    snakefile = str(copied.root / "Snakefile")
    target = "results/tiny/tables/retrieval.parquet"
    # Side by side, from a third folder and from its own.
    both = [start(plain.parent, "-s", snakefile, "--directory", str(plain), target), start(module)]
    for process in both:
        ended(process)
    for name in ("retrieval", "queries"):
        one, other = (folder / f"results/tiny/tables/{name}.parquet" for folder in (plain, module / "out"))
        assert one.read_bytes() == other.read_bytes(), name
    assert (module / "report.txt").read_text().strip() == str((plain / target).stat().st_size)
    assert len(tables.read(plain / target, "retrieval")) > 0
    after = {path for path in copied.root.rglob("*") if "__pycache__" not in path.parts}
    assert after == before  # nothing is written beside the code


def test_a_second_run_has_nothing_to_do(copied, places):
    plain, module = places
    target = "results/tiny/tables/retrieval.parquet"
    first = start(plain, "-s", str(copied.root / "Snakefile"), "--dry-run", target)
    assert "Nothing to be done" in ended(first)
    assert "Nothing to be done" in ended(start(module, "--dry-run"))


def test_an_altered_output_of_a_module_is_found(places):
    """Below the folder of the module's prefix, with the date that it had."""
    _, module = places
    file = module / "out/results/tiny/tables/queries.parquet"
    whole, date = file.read_bytes(), file.stat().st_mtime_ns
    file.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    os.utime(file, ns=(date, date))
    assert "atlas_retrieval" in ended(start(module, "--dry-run"))
    ended(start(module))
    assert file.read_bytes() == whole


def test_the_whole_study_is_planned_from_anywhere_with_what_the_command_line_names(copied, tmp_path):
    """Variants too; overlays by their full names; what is part of the project is the project's."""
    snakefile, overlay = str(copied.root / "Snakefile"), str(copied.root / "tiny.yaml")
    text = ended(start(tmp_path, "-s", snakefile, "--dry-run", "--configfile", overlay))
    assert "own_train_loras" in text and "write_findings" in text
    assert f"{copied.root}/workflow/lora_atlas/pictures/templates/pictures.html" in text
