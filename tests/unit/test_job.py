"""What an adapter does around its call: it ends with Snakemake, and says which of its inputs are not what was made."""

import ast
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPTS = Path(__file__).parents[2] / "workflow/scripts"
sys.path.insert(0, str(SCRIPTS))

import job  # noqa: E402

# A driver as Snakemake is one: it starts a shell, which starts the script and waits for it.
DRIVER = "import subprocess, sys; subprocess.run(['bash', '-c', sys.argv[1] + '; true'])"
SCRIPT = """
import os, sys, threading, time
sys.path.insert(0, {scripts!r})
import job
job._end_with_the_driver(2)
print(os.getpid(), *[thread.name for thread in threading.enumerate()][1:], flush=True)
time.sleep(600)
"""


def started(folder: Path) -> tuple[subprocess.Popen, int, list[str]]:
    """A driver, its job's process, and the names of that one's further threads."""
    folder.mkdir(parents=True)
    (folder / "tmp1.train.py").write_text(SCRIPT.format(scripts=str(SCRIPTS)))
    command = [sys.executable, "-c", DRIVER, f"{sys.executable} {folder}/tmp1.train.py"]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    process, *threads = driver.stdout.readline().split()
    return driver, int(process), threads


def ended(process: int) -> bool:
    """Whether a process has ended, whoever is to ask about it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.skipif(not hasattr(job.os, "pidfd_open"), reason="Linux alone tells of another process's end")
@pytest.mark.fault(
    "Snakemake and SLURM",
    "Snakemake is killed (SIGKILL) while a job runs on the same machine",
    "the job ends with it: the next run has no other beside it that writes the same files",
)
def test_a_job_ends_with_the_driver_that_is_killed(tmp_path):
    driver, process, threads = started(tmp_path / ".snakemake" / "scripts")
    assert threads == ["driver"]
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    while not ended(process):  # pyproject.toml's faulthandler_timeout ends a wait without end
        time.sleep(0.01)
    with driver.stdout:
        assert "Snakemake was killed: its job ends with it" in driver.stdout.read()


def test_a_script_that_no_driver_started_is_left_alone(tmp_path):
    """As a person runs one, or a test."""
    driver, process, threads = started(tmp_path / "scripts")
    try:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        assert not ended(process) and threads == []  # none that would end it a moment later
    finally:
        job.os.kill(process, signal.SIGKILL)
        driver.stdout.close()


@pytest.mark.fault(
    "Snakemake and SLURM",
    "a file changes after Snakemake has looked at it and before the job that reads it",
    "where the job fails, it names the file, the rule that made it, and the command that makes it again",
)
def test_inputs_that_are_not_what_was_made_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = Path("results/s/.made")
    made.mkdir(parents=True)
    for name in ("whole", "cut"):
        Path(f"results/s/{name}.parquet").write_bytes(b"bytes of a table")
    digest = job_digest(Path("results/s/whole.parquet"))
    outputs = {f"results/s/{name}.parquet": digest for name in ("whole", "cut")}
    (made / "embed_weights-0123456789abcdef.json").write_text(json.dumps({"outputs": outputs, "used": []}))
    (made / "other-0123456789abcdef.json").write_text("{")
    Path("results/s/cut.parquet").write_bytes(b"bytes")
    snakemake = SimpleNamespace(config={"study": "s", "shared": {}}, input=[*outputs, "elsewhere.parquet"])
    assert job._inputs_changed(snakemake) == [
        "results/s/cut.parquet: not the bytes that embed_weights made; run the same again, which makes it anew, or "
        "snakemake --forcerun results/s/cut.parquet"
    ]


def job_digest(path: Path) -> str:
    from lora_atlas.keys import DIGESTS

    return DIGESTS.file(path)


# --- what a job's start costs

IMPORTING = """
import gc, sys
sys.path[:0] = {path!r}
import job
with job._uncollected_imports():
    import one
    print(gc.get_freeze_count(), gc.isenabled())
    import many
    print(gc.get_freeze_count() > 1000, gc.isenabled(), many.collected)
    try:
        import broken
    except ZeroDivisionError:
        print(gc.isenabled())
import builtins
print(builtins.__import__.__module__)
"""


def test_the_collector_sleeps_while_a_library_is_imported_and_leaves_that_alone(tmp_path):
    (tmp_path / "one.py").write_text("")
    (tmp_path / "broken.py").write_text("1 / 0")
    for i in range(job.LIBRARY):
        (tmp_path / f"part{i}.py").write_text("kept = [[] for _ in range(1000)]")
    body = "import gc\nbefore = gc.get_stats()\n" + "".join(f"import part{i}\n" for i in range(job.LIBRARY))
    (tmp_path / "many.py").write_text(
        body + "collected = sum(s['collections'] for s in gc.get_stats()) - sum(s['collections'] for s in before)\n"
    )
    code = IMPORTING.format(path=[str(tmp_path), str(SCRIPTS)])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["0 True", "True True 0", "True", "builtins"], done.stderr


# Adapters that run a network, or make the models of workflow/resources.
NETWORKS = {
    "ask_gradients", "ask_ways", "attribute", "base_sensitivity", "export_kohya", "flow_card",
    "generate_pictures", "icon_card", "mini_card", "one_step", "pretrain_autoencoder", "pretrain_base", "pretrain_clip",
    "pretrain_dino", "train_loras",
}  # fmt: skip


def test_stages_that_run_no_network_import_no_library_for_it():
    """torch and diffusers take seconds of every job that imports them."""
    adapters = {path.stem: path for path in SCRIPTS.glob("*.py") if path.stem != "job"}
    assert adapters.keys() >= NETWORKS
    lines = []
    for name in sorted(adapters.keys() - NETWORKS):
        for node in ast.walk(ast.parse(adapters[name].read_text())):
            if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and node.module != "job"):
                lines.append(ast.unparse(node))
        lines.append(f"assert 'torch' not in sys.modules and 'diffusers' not in sys.modules, {name!r}")
    code = "\n".join(["import sys", f"sys.path.insert(0, {str(SCRIPTS.parent)!r})", *dict.fromkeys(lines)])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
