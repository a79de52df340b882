"""Every job of SLURM ends: the commands that stand before SLURM's own, with stand-ins for those."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(__file__).parents[2] / "profiles/slurm/bin"


@pytest.fixture
def slurm(tmp_path):
    """Ask a command with `rows` as the answer (None: it fails); returns exit status, rows, and what was cancelled."""
    real = tmp_path / "real"
    real.mkdir()
    for name, script in {
        "sbatch": 'echo "77"',
        "sacct": 'test -f "$ROWS" || { echo "no slurmdbd" >&2; exit 1; }; cat "$ROWS"',
        "squeue": 'test -f "$QUEUE" && exec cat "$QUEUE"; cat "$ROWS"',
        "scancel": 'echo "$@" >> "$CANCELLED"; test ! -f "$QUEUE.ends" || (sleep 1; : > "$QUEUE") > /dev/null 2>&1 &',
    }.items():
        (real / name).write_text(f"#!/bin/sh\n{script}\n")
        (real / name).chmod(0o755)
    cancelled = tmp_path / "cancelled"

    def ask(command: str, rows: str | None = "", patience: float = 0, driver: str = "") -> tuple[int, list[str], str]:
        (tmp_path / "rows").unlink(missing_ok=True)
        if rows is not None:
            (tmp_path / "rows").write_text(rows)
        environment = {
            "PATH": f"{BIN}:{real}:{Path(sys.executable).parent}:/usr/bin:/bin",
            "ROWS": str(tmp_path / "rows"),
            "QUEUE": str(tmp_path / "queue"),
            "CANCELLED": str(cancelled),
            "LORA_ATLAS_DRIVER": driver,
            "LORA_ATLAS_SLURM_NOTES": str(tmp_path / "notes"),
            "LORA_ATLAS_SLURM_PATIENCE": str(patience),
        }
        words = ["--job-name", "run", "--parsable"] if command == "sbatch" else ["-X", "--name", "run"]
        called = [sys.executable, BIN / "slurm.py", "left"] if command == "left" else [BIN / command, *words]
        done = subprocess.run(called, env=environment, capture_output=True, text=True, check=False, timeout=60)
        gone = cancelled.read_text().strip() if cancelled.exists() else ""
        return done.returncode, done.stdout.split(), gone

    return ask


# The words of sacct(1), "JOB STATE CODES"; that of a job that a person cancelled is "CANCELLED by" and a user's number.
@pytest.mark.parametrize(
    "said",
    ["COMPLETED", "FAILED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "RUNNING", "PENDING"],
)
def test_a_state_that_the_plugin_knows_is_handed_on(slurm, said):
    assert slurm("sacct", f"77|{said}\n") == (0, [f"77|{said}"], "")


@pytest.mark.fault(
    "Snakemake and SLURM",
    "a person cancels a job (CANCELLED by 1000)",
    "told to the plugin as a failure, and tried again",
)
@pytest.mark.parametrize("said", ["CANCELLED by 1000", "CANCELLED+", "CANCELLED by 0"])
def test_whoever_cancelled_it_the_job_is_cancelled(slurm, said):
    assert slurm("sacct", f"77|{said}\n") == (0, ["77|CANCELLED"], "")


@pytest.mark.fault(
    "Snakemake and SLURM",
    "a job is preempted, suspended, or in a state that nobody knows",
    "waited for, then cancelled and tried again",
)
@pytest.mark.parametrize("said", ["PREEMPTED", "SUSPENDED", "REVOKED", "STOPPED", "UNKNOWN", "A_STATE_OF_LATER", ""])
@pytest.mark.parametrize("tool", ["sacct", "squeue"])
def test_a_job_that_does_not_go_on_is_waited_for_and_then_given_up(slurm, said, tool):
    assert slurm(tool, f"77|{said}\n", patience=1000) == (0, ["77|PENDING"], "")
    assert slurm(tool, f"77|{said}\n") == (0, ["77|CANCELLED"], "77")


def test_a_preempted_job_that_goes_on_is_as_any_other(slurm):
    slurm("sacct", "77|PREEMPTED\n", patience=1000)
    assert slurm("sacct", "77|RUNNING\n") == (0, ["77|RUNNING"], "")
    assert slurm("sacct", "77|PREEMPTED\n", patience=1000) == (0, ["77|PENDING"], "")  # its patience begins again


@pytest.mark.fault(
    "Snakemake and SLURM", "accounting forgets a job that was submitted", "given up after the patience, cancelled once"
)
def test_a_submitted_job_that_is_not_listed_is_given_up(slurm):
    assert slurm("sbatch") == (0, ["77"], "")
    assert slurm("sacct", "", patience=1000) == (0, [], "")
    for _ in range(2):  # said as often as it is asked, and cancelled once
        status, rows, gone = slurm("sacct", "76|RUNNING\n")
        assert (status, sorted(rows), gone) == (0, ["76|RUNNING", "77|CANCELLED"], "77")
    assert "77|CANCELLED" in slurm("sacct", "76|RUNNING\n77|COMPLETED\n")[1]  # its retry may run


def test_a_job_that_ended_may_be_forgotten(slurm):
    slurm("sbatch")
    slurm("sacct", "77|COMPLETED\n")
    assert slurm("sacct", "") == (0, [], "")


@pytest.mark.fault(
    "Snakemake and SLURM",
    "accounting is down, and the queue says nothing",
    "waited for as long as the patience; then given up",
)
def test_without_accounting_every_job_is_given_up_in_the_end(slurm):
    slurm("sbatch")
    status, rows, gone = slurm("sacct", None, patience=1000)
    assert (status, rows, gone) == (1, [], "")
    assert slurm("sacct", None) == (0, ["77|CANCELLED"], "77")


@pytest.mark.fault(
    "Snakemake and SLURM",
    "accounting is down, behind, or of other jobs, while a job runs",
    "the queue is asked, and the job goes on",
)
def test_what_accounting_does_not_say_the_queue_is_asked(slurm, tmp_path):
    slurm("sbatch")
    (tmp_path / "queue").write_text("77|RUNNING\n")
    for accounting in (None, "", "76|RUNNING\n"):  # down; behind; of other jobs
        status, rows, gone = slurm("sacct", accounting)
        assert status == 0 and "77|RUNNING" in rows and gone == ""
    assert "77|COMPLETED" in slurm("sacct", "77|COMPLETED\n")[1]  # accounting wins where it says something


@pytest.mark.fault(
    "Snakemake and SLURM",
    "a driver is killed, its jobs live on",
    "the next run cancels them before it submits the same",
)
def test_jobs_that_a_killed_driver_left_are_cancelled_and_forgotten(slurm, tmp_path):
    slurm("sbatch", driver=f"{socket.gethostname()}:{dead()}")
    (tmp_path / "queue").write_text("77\n")
    (tmp_path / "queue.ends").touch()  # a moment after it was cancelled
    assert slurm("left") == (0, [], "77")
    assert not list((tmp_path / "notes").glob("*.json"))


@pytest.mark.fault("Snakemake and SLURM", "two drivers, both alive", "the jobs of the other are left alone")
def test_jobs_of_a_driver_that_lives_are_left_alone(slurm, tmp_path):
    slurm("sbatch", driver=f"{socket.gethostname()}:{os.getpid()}")
    (tmp_path / "queue").write_text("77\n")
    assert slurm("left") == (0, [], "")
    assert list((tmp_path / "notes").glob("*.json"))


@pytest.mark.fault("Snakemake and SLURM", "a job of a killed driver ended meanwhile", "it is not cancelled")
def test_a_job_of_a_killed_driver_that_ended_is_not_cancelled(slurm, tmp_path):
    slurm("sbatch", driver="elsewhere:1")
    slurm("sacct", "77|COMPLETED\n")
    assert slurm("left") == (0, [], "")


def dead() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_tasks_of_an_array_are_of_their_job(slurm):
    slurm("sbatch")
    assert slurm("sacct", "77_1|RUNNING\n77_2|CANCELLED by 5\n")[1] == ["77_1|RUNNING", "77_2|CANCELLED"]


def test_a_query_that_is_not_of_a_run_is_the_real_one(slurm, tmp_path):
    (tmp_path / "rows").write_text("anything\n")
    environment = {
        "PATH": f"{BIN}:{tmp_path}/real:{Path(sys.executable).parent}:/usr/bin:/bin",
        "ROWS": str(tmp_path / "rows"),
    }
    done = subprocess.run([BIN / "squeue", "--me"], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "anything\n"


def test_notes_are_kept_by_run(slurm, tmp_path):
    slurm("sbatch")
    assert set(json.loads((tmp_path / "notes/run.json").read_text())["jobs"]) == {"77"}
    assert {Path(name).stem for name in os.listdir(tmp_path / "notes")} == {"run"}
