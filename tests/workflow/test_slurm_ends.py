"""The real plugin with stand-ins for SLURM's commands: whatever becomes of a job, it is tried again, and it ends."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

BIN = Path(__file__).parents[2] / "profiles/slurm/bin"
# What accounting says of the first attempt at each rule's job, as sacct(1) writes it; "": it does not list it.
STATES = {
    "by_a_person": "CANCELLED by 1000",
    "for_memory": "OUT_OF_MEMORY",
    "for_time": "TIMEOUT",
    "with_its_node": "NODE_FAIL",
    "preempted": "PREEMPTED",
    "suspended": "SUSPENDED",
    "unknown": "UNKNOWN",
    "unlisted": "",
    "without_output": "COMPLETED",
}
SNAKEFILE = """
import os

onstart:
    os.environ.update(PATH=os.pathsep.join(["{bin}", *os.get_exec_path()]))

rule all:
    input: {outputs}
    localrule: True
"""
RULE = """
rule {rule}:
    output: "made/{rule}"
    resources: slurm_account="lab", slurm_partition="cpu", runtime=5
    shell: "touch {{output}}"
"""
# The second attempt at a job "runs" when it is submitted.
STUB = """#!{python}
import fcntl, re, sys
from pathlib import Path
states, place = {states!r}, Path({place!r})
command, words = Path(sys.argv[0]).name, sys.argv[1:]
if command == "sbatch":
    rule = re.search(r"rule_(\\w+?)(?:_wildcards|$)", words[words.index("--comment") + 1])[1]
    # The plugin submits two jobs at once; SLURM gives a number to one of them only.
    with open(place / "jobs", "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        before = [line.split() for line in file]
        first = rule not in [known for _, known, _ in before]
        print(100 + len(before), rule, int(first), file=file, flush=True)
    if not first:
        (place / "made").mkdir(exist_ok=True)
        (place / "made" / rule).touch()
    print(100 + len(before))
elif command == "sacct":
    for job, rule, first in (line.split() for line in (place / "jobs").read_text().splitlines()):
        state = states[rule] if first == "1" else "COMPLETED"
        if state and "--name" in words:
            print(f"{{job}}|{{state}}")
        elif "nodelist" in " ".join(words):
            print("node7")
elif command == "scancel":
    with open(place / "cancelled", "a") as file:
        print(*words, file=file)
elif command == "sinfo":
    print("cpu")
"""


@pytest.mark.fault(
    "Snakemake and SLURM",
    "jobs that end in nine ways: cancelled, out of memory, out of time, with their node, preempted …",
    "each is tried again, and the run ends in success",
)
def test_whatever_becomes_of_a_job_it_is_tried_again_and_the_run_ends(tmp_path):
    real = tmp_path / "slurm"
    real.mkdir()
    (tmp_path / "jobs").touch()
    for name in ("sbatch", "sacct", "squeue", "scancel", "scontrol", "sinfo", "sacctmgr", "sshare"):
        (real / name).write_text(STUB.format(python=sys.executable, states=STATES, place=str(tmp_path)))
        (real / name).chmod(0o755)
    outputs = ", ".join(f'"made/{rule}"' for rule in STATES)
    text = SNAKEFILE.format(bin=BIN, outputs=outputs) + "".join(RULE.format(rule=rule) for rule in STATES)
    (tmp_path / "Snakefile").write_text(text)
    options = "--executor slurm --jobs 20 --retries 1 --keep-going --latency-wait 1 --slurm-no-requeue"
    options += " --slurm-init-seconds-before-status-checks 1 --workflow-profile none"
    done = subprocess.run(
        [str(Path(sys.executable).with_name("snakemake")), *shlex.split(options)],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{real}:{os.environ['PATH']}", "LORA_ATLAS_SLURM_PATIENCE": "2"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,  # five minutes are what a state may take
    )
    assert done.returncode == 0, done.stdout[-4000:]
    tried = dict(line.split()[:2] for line in (tmp_path / "jobs").read_text().splitlines())  # job → rule
    assert {rule: list(tried.values()).count(rule) for rule in STATES} == dict.fromkeys(STATES, 2)
    cancelled = {line.split()[-1] for line in (tmp_path / "cancelled").read_text().splitlines()}
    assert {tried[job] for job in cancelled} == {"preempted", "suspended", "unknown", "unlisted"}
