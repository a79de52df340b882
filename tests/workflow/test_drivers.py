"""Snakemake with our profile: two of them in one folder, and one that is told to end."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROFILE = Path(__file__).parents[2] / "profiles/default"
# The first job waits until it is let go; the second follows it.
SNAKEFILE = """
rule all:
    input: "second"
rule first:
    output: "first"
    shell: "touch started; while [ ! -e go ]; do sleep 0.1; done; touch {output}"
rule second:
    input: "first"
    output: "second"
    shell: "touch {output}"
"""


@pytest.fixture
def running(tmp_path):
    """A folder in which Snakemake runs a job that waits for the file `go`, and that Snakemake."""
    shutil.copytree(PROFILE, tmp_path / "profiles/default")
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    driver = start(tmp_path)
    while not (tmp_path / "started").exists():
        assert driver.poll() is None, driver.communicate()[0]
        time.sleep(0.05)
    yield tmp_path, driver
    (tmp_path / "go").touch()
    if driver.poll() is None:
        driver.communicate()


def start(folder: Path) -> subprocess.Popen:
    command = [str(Path(sys.executable).with_name("snakemake")), "--cores", "1"]
    return subprocess.Popen(
        command, cwd=folder, env={**os.environ, "NO_COLOR": "1"}, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.fault(
    "Snakemake and SLURM",
    "two drivers in one folder; then SIGTERM to the one that runs",
    "the second ends at once and says how to unlock; the first lets its job end, starts no other, ends with status 1, "
    "and the next run goes on without an unlock",
)
def test_a_second_driver_is_refused_and_one_that_is_told_to_end_lets_its_job_end(running):
    folder, driver = running
    second = start(folder)
    said = second.communicate()[0]
    assert second.returncode != 0 and "LockException" in said and "--unlock" in said
    assert driver.poll() is None and not (folder / "first").exists()
    driver.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    (folder / "go").touch()
    said = driver.communicate()[0]
    assert driver.returncode == 1, said
    assert (folder / "first").exists() and not (folder / "second").exists()
    third = start(folder)
    said = third.communicate()[0]
    assert third.returncode == 0 and (folder / "second").exists(), said
