"""The environment: one lock, its conda mirror, and nothing in either that names where packages came from."""

import importlib.util
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "envs/requirements.lock").read_text()


def mirror_module():
    spec = importlib.util.spec_from_file_location("mirror", ROOT / "envs/mirror.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_conda_environment_has_the_pins_of_the_lock():
    assert (ROOT / "envs/lora-atlas.yaml").read_text() == mirror_module().mirror(LOCK), "run `make lock`"


def test_every_requirement_of_the_lock_is_pinned_and_hashed():
    blocks = re.split(r"^(?=\S)", LOCK, flags=re.MULTILINE)
    blocks = [block for block in blocks if block.strip() and not block.startswith("#")]
    assert len(blocks) == len(mirror_module().pins(LOCK)) > 50
    assert all("--hash=sha256:" in block for block in blocks)
    assert "://" not in LOCK


def test_the_lock_has_what_the_project_asks_for():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    locked = {
        (r := Requirement(pin)).name.lower().replace("_", "-"): str(r.specifier) for pin in mirror_module().pins(LOCK)
    }
    for text in asked:
        wanted = Requirement(text)
        pin = locked[wanted.name.lower().replace("_", "-")]
        assert wanted.specifier.contains(pin.removeprefix("==")), text


@pytest.mark.parametrize("package", ["torch", "torchvision", "diffusers", "peft", "safetensors", "pyarrow"])
def test_the_tests_run_on_the_locked_versions(package):
    locked = {Requirement(pin).name: str(Requirement(pin).specifier) for pin in mirror_module().pins(LOCK)}
    assert f"=={version(package).split('+')[0]}" == locked[package]


def test_cleaning_up_never_deletes_results_unasked():
    def commands(target: str) -> str:
        return subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "rm -rf" in commands("clean") and "results" not in commands("clean")
    assert "read answer" in commands("clean-results")
