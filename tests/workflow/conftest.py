"""A tiny study, run once by Snakemake itself in a copy of the repository; the tests look at what it left."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import private
import pytest

REPOSITORY = Path(__file__).parents[2]
# Four artists, so that there is an artist-disjoint basis; everything else as small as it may be.
OVERLAY = """
study: tiny
resources: {device: cpu}
pictures: {artists: [maren, odile, joris, berthe], per_artist: 12}
plan: {gallery: [4, 3], query: [3]}
training: {steps: 3, rank: 2, alpha: 2, batch: 2, warmup: 1}
generation: {num_inference_steps: [2], guidance_scale: [1], prompts: [a painting], seeds: [0, 1], batch: 6, worth: null}
embedding: {dimensions: 4, folds: 3}
attribution:
  {samples: 2, reference: 8, batch: 8, ways: {samples: [1], powers: [1], classifier: 1, generated: 2}}
weights: {probe: {samples: 4, num_inference_steps: 2, batch: 2, seed: 0, prompts: [a painting]}}
evaluation: {bootstrap: 50, restarts: 2, permutations: 10, draws: 2, subsets: 3}
variants:
  own: {training: {init: own}, extractors: {clip: null, dino: null, one_gradient: null}}
"""


@dataclass(frozen=True)
class Workflow:
    """A copy of the repository, and snakemake in it."""

    root: Path
    study: list[str] = field(default_factory=lambda: ["--configfile", "tiny.yaml"])

    def run(self, *arguments: str, fails: bool = False) -> str:
        """What Snakemake prints; its exit status is checked."""
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE", "NO_COLOR": "1"}
        environment |= {"USER": private.USER, "LOGNAME": private.USER}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(
            [str(Path(sys.executable).with_name("snakemake")), "--cores", "2", *arguments],
            cwd=self.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1800,
        )
        assert (done.returncode != 0) == fails, done.stdout[-4000:]
        return done.stdout

    def make(self, *targets: str) -> str:
        return self.run(*targets, *self.study)

    def planned(self, *arguments: str) -> dict[str, int]:
        """Rule → number of jobs that a run would start; target rules are left out."""
        text = self.run("--dry-run", *arguments, *self.study)
        stats = re.search(r"^job +count\n[- ]+\n(.*?)^total", text, re.MULTILINE | re.DOTALL)
        rows = dict(line.split() for line in stats[1].splitlines() if line.strip()) if stats else {}
        targets = {"all", "pictures", "loras", "generated", "features", "weights", "embeddings", "tables", "charts"}
        targets |= {"findings", "atlas"}
        return {rule: int(count) for rule, count in rows.items() if rule not in targets}


@pytest.fixture(scope="session")
def copied(tmp_path_factory) -> Workflow:
    """The repository alone, nothing run yet."""
    root = tmp_path_factory.mktemp("study") / "atlas"
    shutil.copytree(REPOSITORY, root, ignore=shutil.ignore_patterns(".*", "results", "__pycache__", "*.egg-info"))
    (root / "tiny.yaml").write_text(OVERLAY)
    return Workflow(root)


@pytest.fixture(scope="session")
def tiny(copied) -> Workflow:
    """The tiny study, done."""
    copied.make()
    return copied
