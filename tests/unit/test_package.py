"""The package that `pip install .` makes: one version, its data inside, and every module imports from it alone."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

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
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "workflow/lora_atlas", source / "workflow/lora_atlas", ignore=ignored)
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


def test_the_citation_is_of_this_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == lora_atlas.__version__
