"""What a person says wins over profiles/default, key by key; docs/reruns.md has the table."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROFILE = Path(__file__).parents[2] / "profiles/default/profile.yaml"
SNAKEFILE = """
print("said:", workflow.resource_settings.cores, workflow.resource_settings.resources.get("gpu"))


rule all:
    output: "made"
    shell: "touch {output}"
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("profiles")
    (root / "profiles/default").mkdir(parents=True)
    shutil.copy(PROFILE, root / "profiles/default")
    (root / "Snakefile").write_text(SNAKEFILE)
    for name, said in {"one": "cores: 1\nresources:\n  - gpu=8\n", "few": "printshellcmds: true\n"}.items():
        (root / name).mkdir()
        (root / name / "profile.yaml").write_text(said)
    return root


def said(place: Path, *arguments: str, **environment: str) -> list[str]:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("snakemake")), "-n", *arguments],
        cwd=place, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    words = next(line for line in (done.stdout + done.stderr).splitlines() if line.startswith("said:")).split()
    return [words[1], words[-1].rstrip(")")]


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        ([], {}, [str(len(os.sched_getaffinity(0))), "1"]),  # what profiles/default says
        (["--profile", "one"], {}, ["1", "8"]),
        ([], {"SNAKEMAKE_PROFILE": "one"}, ["1", "8"]),
        (["--profile=few"], {}, [str(len(os.sched_getaffinity(0))), "1"]),  # what it does not say stays
        (["--profile", "one", "--cores", "3", "--resources", "gpu=2"], {}, ["3", "2"]),
        (["--workflow-profile", "none", "--cores", "2"], {}, ["2", "None"]),
    ],
)
def test_what_a_person_says_wins(place, arguments, environment, expected):
    assert said(place, *arguments, **environment) == expected
