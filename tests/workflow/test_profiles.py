"""What a person says wins over profiles/default, key by key (docs/reruns.md has the table); and a driver that waits,
waits."""

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


WAITING = f"""
include: "{Path(__file__).parents[2] / "workflow/rules/start.smk"}"


onstart:
    start_at_once()


rule all:
    input: expand("quick/{{n}}", n=range(5)), "slow", "late"


rule quick:
    output: touch("quick/{{n}}")
    priority: 2
    shell: "true"


rule slow:
    output: touch("slow")
    priority: 1
    shell: "sleep 3"


rule late:
    output: touch("late")
    shell: "true"
"""


@pytest.mark.parametrize(
    ("arguments", "looks"), [([], range(1)), (["--max-jobs-per-timespan", "90/1s"], range(4, 999))]
)
def test_a_driver_whose_jobs_all_run_does_not_look_again(tmp_path, arguments, looks):
    """Snakemake would look five times a second after five jobs; a limit that a person sets is kept."""
    (tmp_path / "Snakefile").write_text(WAITING)
    snakemake = str(Path(sys.executable).with_name("snakemake"))
    done = subprocess.run(
        [snakemake, "--cores", "1", "--verbose", *arguments],
        cwd=tmp_path, env={**os.environ, "NO_COLOR": "1"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    told = done.stdout + done.stderr
    assert done.returncode == 0, told
    _, between = told.split("rule slow:", 1)
    between, _ = between.split("Touching output file slow", 1)
    assert between.count("Ready jobs:") in looks
