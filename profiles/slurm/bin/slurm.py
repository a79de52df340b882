"""SLURM's commands as Snakemake's plugin (2.8.0) asks them, so that every job ends: in success, a retry or a failure.

The plugin waits for ever for a job that somebody cancelled (accounting says "CANCELLED by 1000", and it compares with
"CANCELLED"), for one that stays preempted, suspended or revoked, and for one that accounting does not list; and it
takes UNKNOWN for success. This stands before `sbatch`, `sacct` and `squeue` on the PATH, where the Snakefile puts it,
hands them everything, writes down which jobs were submitted, and answers for the states alone:

- a state is its first word;
- a job that is in no state in which it can go on, or that is not listed, for longer than LORA_ATLAS_SLURM_PATIENCE
  (45 seconds) is cancelled, so that it cannot run beside its own retry, and reported as CANCELLED;
- what accounting does not say, or cannot since it is down, the queue is asked (SLURM's controller answers for it);
- where no state can be had for that long after the first failure, every job is treated so;
- jobs that an earlier run of the same folder left, because its driver was killed, are cancelled before the next run
  submits the same (`python3 slurm.py left`): else both would write the same files.

Standard library only: it runs in whatever Python is there.
"""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
# What a job waits, runs or ends in (squeue(1), "JOB STATE CODES"); the plugin knows what to do with these.
GOES_ON = {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESIZING"}
GOES_ON |= {"RESV_DEL_HOLD", "SIGNALING", "STAGE_OUT"}
ENDS = {"COMPLETED", "BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}
PATIENCE = float(os.environ.get("LORA_ATLAS_SLURM_PATIENCE", "45"))
GIVEN_UP = "given up"
MOST = 50.0  # seconds: the plugin gives a query up after 60


def real(tool: str) -> str:
    """The command itself: the first on the PATH that is not ours."""
    folders = [each for each in os.environ.get("PATH", "").split(os.pathsep) if each and Path(each).resolve() != HERE]
    found = shutil.which(tool, path=os.pathsep.join(folders))
    if found is None:
        sys.exit(f"{tool}: there is no such command on the PATH")
    return found


def submit(arguments: list[str]) -> int:
    """`sbatch`; the job's id and name are written down."""
    done = subprocess.run([real("sbatch"), *arguments], stdout=subprocess.PIPE, text=True, check=False)
    sys.stdout.write(done.stdout)
    words = done.stdout.split()
    job = next((word.split(";")[0] for word in reversed(words) if word.split(";")[0].isdigit()), None)
    if done.returncode == 0 and job is not None:
        with Notes(option(arguments, "--job-name", "-J")) as notes:
            notes.jobs[job] = {"submitted": time.time()}
    return done.returncode


def states(tool: str, arguments: list[str]) -> int:
    """`sacct` or `squeue` of a run; rows "id|state"."""
    begin = time.time()
    while True:
        done = subprocess.run([real(tool), *arguments], capture_output=True, text=True, check=False)
        found, answered, run = rows_of(done), done.returncode == 0, option(arguments, "--name", "-n")
        with Notes(run) as notes:
            if tool == "sacct" and any(not note.get("ended") and job not in found for job, note in notes.jobs.items()):
                queue = [real("squeue"), "--noheader", "--states=all", "--format=%i|%T", f"--name={run}"]
                found = {**rows_of(subprocess.run(queue, capture_output=True, text=True, check=False)), **found}
            answer, waits = judged(found, notes, answered)
        # Rather here for a moment than at the plugin's next query, minutes from now.
        if waits is None or waits > begin + MOST - time.time():
            break
        time.sleep(max(waits, 0.2))
    if done.returncode and not answer:
        sys.stderr.write(done.stderr)
        return done.returncode
    sys.stdout.write("".join(f"{job}|{state}\n" for job, state in answer.items()))
    return 0


def rows_of(done: "subprocess.CompletedProcess[str]") -> dict[str, str]:
    """Job → state, of rows "id|state"; none of a command that failed."""
    rows = [line.split("|") for line in done.stdout.splitlines() if "|" in line] if done.returncode == 0 else []
    return {row[0].strip(): row[1].strip() for row in rows}


def left() -> int:
    """Cancel the jobs of earlier runs of this folder whose drivers are gone, wait for their end, and forget them."""
    jobs: list[str] = []
    for file in sorted(notes_folder().glob("*.json")):
        with Notes(file.stem) as notes:
            if not alive(notes.driver):
                jobs += [job for job, note in notes.jobs.items() if not note.get("ended")]
                notes.file.unlink(missing_ok=True)
                notes.forgotten = True
    if not jobs:
        return 0
    queue = [real("squeue"), "--noheader", "--format=%i", f"--jobs={','.join(jobs)}"]
    # One that is no longer in the queue has ended; of ids that SLURM has forgotten, squeue says nothing but an error.
    there = subprocess.run(queue, capture_output=True, text=True, check=False).stdout.split()
    if there:
        print(f"SLURM jobs that an earlier run left are cancelled: {', '.join(there)}", file=sys.stderr)
        subprocess.run([real("scancel"), *there], capture_output=True, check=False)
        until = time.time() + MOST
        while time.time() < until and subprocess.run(queue, capture_output=True, text=True, check=False).stdout.split():
            time.sleep(1)
    return 0


def alive(driver: str | None) -> bool:
    """Whether the driver "host:process" runs. On another host nobody can tell, and Snakemake's lock of the folder says
    that it does not."""
    host, _, process = (driver or "").rpartition(":")
    if host != socket.gethostname() or process == os.environ.get("LORA_ATLAS_DRIVER", "").rpartition(":")[2]:
        return False
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def judged(found: dict[str, str], notes: "Notes", answered: bool) -> tuple[dict[str, str], float | None]:
    """State of each job, as the plugin is to see it; and in how many seconds the next of them loses patience."""
    now, waits = time.time(), []
    answer: dict[str, str] = {}
    listed = {job.split("_")[0].split(".")[0] for job in found}
    # Said as often as it is asked: the plugin may have asked before it knew the job.
    given_up = {job for job, note in notes.jobs.items() if str(note.get("ended")).startswith(GIVEN_UP)}
    answer |= dict.fromkeys(given_up, "CANCELLED")
    stuck = {job: "" for job, note in notes.jobs.items() if not note.get("ended") and job not in listed}
    for job, said in found.items():
        if job in given_up:
            continue
        state = (said.split() or ["NOTHING"])[0].rstrip("+").upper()
        note = notes.jobs.setdefault(job.split("_")[0], {"submitted": now})
        if state in ENDS or state in GOES_ON:
            answer[job] = state
            note.pop("stuck", None)
            if state in ENDS and "_" not in job:
                note["ended"] = state
        else:
            stuck[job] = state
    for job, state in stuck.items():
        note = notes.jobs[job.split("_")[0]]
        left = note.setdefault("stuck", now) + PATIENCE - now
        if left > 0:
            waits.append(left)
            if state:
                answer[job] = "PENDING"
        else:
            subprocess.run([real("scancel"), job], capture_output=True, check=False)
            answer[job] = "CANCELLED"
            note["ended"] = f"{GIVEN_UP}: {state or ('not listed' if answered else 'no answer')}"
    return answer, min(waits, default=None)


def notes_folder() -> Path:
    return Path(os.environ.get("LORA_ATLAS_SLURM_NOTES", ".snakemake/lora_atlas_slurm"))


class Notes:
    """What is known of a run, in a file of the working directory: its driver, "host:process", and its jobs: id →
    submitted, stuck (times), ended."""

    def __init__(self, run: str | None):
        self.file = notes_folder() / f"{run or 'unnamed'}.json"
        self.driver = os.environ.get("LORA_ATLAS_DRIVER")
        self.jobs: dict[str, dict] = {}
        self.forgotten = False

    def __enter__(self) -> "Notes":
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.lock = self.file.with_suffix(".lock").open("w")
        fcntl.flock(self.lock, fcntl.LOCK_EX)  # jobs are submitted while others are asked about
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            said = json.loads(self.file.read_text())
            self.driver, self.jobs = said["driver"], said["jobs"]
        return self

    def __exit__(self, *error: object) -> None:
        if not self.forgotten:
            beside = self.file.with_suffix(f".{os.getpid()}.part")
            beside.write_text(json.dumps({"driver": self.driver, "jobs": self.jobs}))
            beside.replace(self.file)
        self.lock.close()


def option(arguments: list[str], *names: str) -> str | None:
    """The value of an option, as a word of its own or after "="."""
    for place, word in enumerate(arguments):
        if word in names and place + 1 < len(arguments):
            return arguments[place + 1]
        if word.split("=", 1)[0] in names and "=" in word:
            return word.split("=", 1)[1]
    return None


if __name__ == "__main__":
    command, given = sys.argv[1], sys.argv[2:]
    if command == "left":
        sys.exit(left())
    if command == "sbatch":
        sys.exit(submit(given))
    if option(given, "--name", "-n") is None:  # nothing that the plugin asks of a run
        os.execv(real(command), [command, *given])
    sys.exit(states(command, given))
