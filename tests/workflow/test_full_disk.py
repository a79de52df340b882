"""A disk that is full, a real one: a small file system in memory, on which the results lie."""

import hashlib
import subprocess
from dataclasses import replace

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def small(copied, tmp_path):
    """A working directory whose results/ is a file system of its own, and a function that sets its size."""
    results = tmp_path / "results"
    results.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", results]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a file system of one's own wants root: {mounted.stderr.strip()}")

    def resize(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", results], check=True)

    study = ["--snakefile", str(copied.root / "Snakefile"), "--configfile", str(copied.root / "tiny.yaml")]
    yield replace(copied, root=tmp_path, study=study), resize
    subprocess.run(["umount", results], check=True)


@pytest.mark.fault(
    "training",
    "the disk of the results is full: while pictures are written, then while training saves its state",
    "the job ends and names the disk; with more room the same command goes on, to the bytes of an undisturbed run",
)
def test_a_full_disk_is_named_and_with_more_room_all_is_as_ever(small, tmp_path_factory):
    workflow, resize = small
    undisturbed = replace(workflow, root=tmp_path_factory.mktemp("undisturbed"))
    undisturbed.run("loras", *workflow.study)
    for size, job in (("64k", "collect_pictures"), ("1m", "train_loras")):
        resize(size)
        said = workflow.run("loras", *workflow.study, fails=True)
        words = next((line for line in said.splitlines() if "no room is left" in line), "")
        assert words.partition(":")[0].endswith(job), said[-3000:]
        assert f"on the disk of {workflow.root / 'results'}" in words and "make some, and run the same" in words
        assert "inline_container" not in said  # torch's own words for it
    resize("200m")
    workflow.run("loras", *workflow.study)
    made, whole = (
        {
            str(path.relative_to(root / "results/tiny")): hashlib.sha256(path.read_bytes()).hexdigest()
            for pattern in ("loras/*/*.safetensors", "pictures/*.parquet", "plan/*.parquet")
            for path in (root / "results/tiny").glob(pattern)
        }
        for root in (workflow.root, undisturbed.root)
    )
    assert len(whole) > 12 and made == whole
