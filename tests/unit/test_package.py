"""The package that `pip install .` makes: one version, its data inside, and every module imports from it alone."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from lora_files import lora, sd1
from PIL import Image

import lora_atlas

ROOT = Path(__file__).parents[2]
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
IMPORT = """
import importlib, pkgutil, warnings
warnings.simplefilter("ignore")  # of other people's packages
import lora_atlas
names = [m.name for m in pkgutil.walk_packages(lora_atlas.__path__, "lora_atlas.")]
for name in names:
    importlib.import_module(name)
from importlib.metadata import version
from lora_atlas.pictures.page import write
print(lora_atlas.__file__, version("lora-atlas"), len(names))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, without a network: setuptools is in the lock."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".*", "results", "__pycache__", "*.egg-info", "tests", "docs", "benchmarks")
    shutil.copytree(ROOT, source, ignore=ignored, dirs_exist_ok=True)
    done = subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return next(out.glob("*.whl"))


def test_every_file_of_the_library_is_in_it(wheel):
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("lora_atlas/")}
    library = ROOT / "workflow/lora_atlas"
    files = {p.relative_to(library.parent).as_posix() for p in library.rglob("*") if p.is_file()}
    assert inside == {name for name in files if "__pycache__" not in name}


def test_every_module_imports_from_it_alone(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    where, version, modules = done.stdout.split()
    assert where == str(tmp_path / "lora_atlas/__init__.py")
    assert version == lora_atlas.__version__ and int(modules) > 80


def test_the_workflow_is_in_it(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    needed = [ROOT / "Snakefile", ROOT / "config.yaml", *(ROOT / "profiles").rglob("*")]
    for folder in ("report", "resources", "rules", "schemas", "scripts", "studies"):
        needed += (ROOT / "workflow" / folder).rglob("*")
    for path in needed:
        if path.is_file() and "__pycache__" not in path.parts:
            assert f"lora_atlas_workflow/{path.relative_to(ROOT).as_posix()}" in inside
    assert not [name for name in inside if name.startswith("lora_atlas_workflow/") and "lora_atlas/" in name[20:]]


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """Where pip puts what is in it."""
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def installed(site, here, *words):
    """The console command in an empty folder, with the library and the workflow of the wheel alone."""
    here.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "lora_atlas.console", *words],
        cwd=here, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.slow
def test_a_folder_of_loras_is_mapped_by_what_is_installed_alone(site, tmp_path):
    """From the console command to the map."""
    for i in range(5):
        lora(tmp_path / "my loras" / f"{i}.safetensors", sd1(("attn1",)), seed=i)
    done = installed(site, tmp_path / "here", "map", "../my loras", "--", "--quiet")
    assert str(site / "lora_atlas_workflow/Snakefile") in done.stderr
    page = tmp_path / "here/results/my_loras/atlas.html"
    assert page.stat().st_size > 1000
    assert not list(site.rglob("results"))


@pytest.mark.slow
@pytest.mark.parametrize("study", ["demo", "run flow", "run painters"])
def test_studies_are_planned_by_what_is_installed_alone(site, tmp_path, study):
    """All that they make, the page of the pictures included."""
    for artist in ("ada", "bob"):
        (tmp_path / "art" / artist).mkdir(parents=True)
        for i in range(9):
            noise = np.random.default_rng(i).integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "art" / artist / f"{i}.png")
    pictures = ["--config", "folder=../art"] * (study == "run painters")
    done = installed(site, tmp_path / "here", *study.split(), "--", "-n", *pictures)
    planned = done.stdout + done.stderr
    assert "rule show_pictures" in planned and "rule write_findings" in planned


def test_the_citation_is_of_this_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == lora_atlas.__version__
