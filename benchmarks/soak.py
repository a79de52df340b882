"""A small study, disturbed: SIGKILL of the driver or of a job at a random moment, again and again; then completed.

    python benchmarks/soak.py --folder /tmp/soak --rounds 20

Each round is a folder of its own with nothing in it, not even a cache. Numbers drawn from seed and round say what is
killed (Snakemake itself, or one of its jobs) and when; the same command is then run again as its messages ask.
A round is sound where the run ends, every table and every LoRA has the bytes of an undisturbed run (but for measured
seconds), no process of the round is alive, and a lock that was left is named with the command that removes it.

What a round came to is a line of FOLDER/rounds.jsonl; rounds that have one are not run again, so that the whole can be
stopped at any time and goes on. The code is that of the commit that is checked out when FOLDER is made.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow"))

from lora_atlas import tables

# From pictures by training and weights to tables, as small as may be; training saves its state often enough to be met
# between two states. What looks at pictures is left out: a round is then minutes of two busy cores.
STUDY = """
study: soak
pictures: {artists: [maren, odile, joris], per_artist: 12}
plan: {gallery: [4, 3], query: [3]}
training: {steps: 60, rank: 2, alpha: 2, batch: 2, warmup: 1}
extractors: {clip: null, dino: null, one_gradient: null}
weights: {kernels: [delta], modules: [consensus, plain], controls: [norm]}
embedding: {dimensions: 4, folds: 3}
evaluation: {bootstrap: 50, restarts: 2, permutations: 10, draws: 2, subsets: 3}
resources: {device: cpu, checkpoint_every: 10}
"""
WANTED = [
    "pictures",
    *(f"results/soak/tables/{name}.parquet" for name in ("retrieval", "clustering", "module_weights")),
]
MARK = "LORA_ATLAS_SOAK"  # of the environment: the processes of a round, whoever their parent is
GRACE = 20  # seconds that processes have to end after their driver
LIMIT = 1800  # seconds of one run


class Round:
    """A folder in which the study is run, and the processes that it starts."""

    def __init__(self, folder: Path, code: Path, name: str):
        self.root, self.code, self.name = folder / name, code, f"{folder.resolve()}:{name}"
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(parents=True)
        (self.root / "soak.yaml").write_text(STUDY)

    def start(self, *arguments: str) -> subprocess.Popen:
        """Snakemake, in the background, with what it says in a file of the round."""
        environment = {**os.environ, MARK: self.name, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        environment.pop("PYTHONPATH", None)
        command = [Path(sys.executable).with_name("snakemake"), "--snakefile", self.code / "Snakefile", "--cores", "2"]
        command += ["--workflow-profile", self.code / "profiles/default", "--configfile", "soak.yaml", "--", *arguments]
        if arguments == ("--unlock",):
            command.remove("--")
        with (self.root / "said.log").open("a") as log:
            return subprocess.Popen(
                list(map(str, command)), cwd=self.root, env=environment, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip

    def run(self, *arguments: str) -> tuple[int, str]:
        """Exit status, and what was said."""
        before = self.said()
        status = self.start(*arguments or WANTED).wait(LIMIT)
        return status, self.said()[len(before) :]

    def said(self) -> str:
        log = self.root / "said.log"
        return log.read_text() if log.exists() else ""

    def processes(self) -> dict[int, list[str]]:
        """Process → command line, of all that this round started and that are alive."""
        mark, found = f"{MARK}={self.name}\0".encode(), {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (process / "environ").read_bytes() + b"\0":
                    words = (process / "cmdline").read_bytes().decode().split("\0")
                    if words != [""]:  # one that has ended, and that its parent has not asked about yet
                        found[int(process.name)] = words
            except OSError:  # it ended while it was looked at, or is somebody else's
                continue
        return found

    def jobs(self) -> list[int]:
        """Processes that run an adapter."""
        python = {pid: words[1] for pid, words in self.processes().items() if len(words) > 1 and "python" in words[0]}
        return sorted(
            pid for pid, script in python.items() if Path(script).parent.parts[-2:] == (".snakemake", "scripts")
        )

    def digests(self) -> dict[str, str]:
        """What the study holds: tables by their rows without seconds, and all other results by their bytes."""
        found = {}
        for path in sorted((self.root / "results/soak").rglob("*")):
            name = path.relative_to(self.root / "results/soak")
            if (
                not path.is_file()
                or {"logs", ".made", "state", "cost"} & set(name.parts)
                or path.suffix in (".html", ".md")
            ):
                continue
            found[name.as_posix()] = _timeless(path) if path.suffix == ".parquet" else _sha256(path)
        return found


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _timeless(path: Path) -> str:
    """A table's bytes; where it has seconds that were measured, its other values."""
    read = tables.pq.read_table(path)
    timed = [name for name in read.column_names if "seconds" in name]
    return f"without {timed}: {tables.digest(read.drop_columns(timed))}" if timed else _sha256(path)


def disturbed(each: Round, draw: random.Random, length: float) -> dict:
    """Run, kill something at a random moment, and complete it; what came of that."""
    what, moment = draw.choice(["driver", "job"]), draw.uniform(0, length)
    driver, start, victim = each.start(*WANTED), time.monotonic(), None
    while driver.poll() is None and victim is None:
        time.sleep(0.05)
        if time.monotonic() - start >= moment:
            victim = driver.pid if what == "driver" else next(iter(draw.sample(jobs := each.jobs(), len(jobs))), None)
    doing = each.processes().get(victim or 0, [])
    found = {
        "killed": what,
        "at": round(time.monotonic() - start, 1),
        "doing": _named(doing) if what == "job" else None,
    }
    if victim is None:
        return found | {"wrong": "the run had ended before anything was killed"}
    os.kill(victim, signal.SIGKILL)
    driver.wait(LIMIT)
    end = time.monotonic() + GRACE
    while each.processes() and time.monotonic() < end:
        time.sleep(0.2)
    left = [_named(words) for words in each.processes().values()]
    status, said = each.run()
    if status and "LockException" in said:
        found["lock"] = "named with --unlock" if "--unlock" in said else "not explained"
        each.run("--unlock")
        status, said = each.run()
    return found | {"left": left, "status": status, "said": said[-2000:] if status else ""}


def _named(words: list[str]) -> str:
    return Path(words[1]).name.split(".", 1)[-1] if len(words) > 1 else " ".join(words)


def judged(found: dict, expected: dict[str, str], each: Round) -> dict:
    """The same with what is wrong."""
    have = each.digests()
    wrong = [found["wrong"]] if "wrong" in found else []
    wrong += [f"left alive: {name}" for name in found.get("left", ())]
    wrong += [f"ended with status {found['status']}"] * bool(found.get("status"))
    wrong += [f"{name}: other bytes" for name in sorted({*have, *expected}) if have.get(name) != expected.get(name)][:5]
    wrong += ["a lock without the way out"] * (found.get("lock") == "not explained")
    wrong += [f"alive at the end: {_named(words)}" for words in each.processes().values()]
    return {**{key: value for key, value in found.items() if key not in ("left", "wrong") and value}, "wrong": wrong}


def laid_out(folder: Path) -> Path:
    """The commit's files, without what is not in it."""
    code = folder / "code"
    if not (code / "Snakefile").exists():
        code.mkdir(parents=True, exist_ok=True)
        archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", code], input=archive, check=True)
    return code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=20, help="of all, with those that are done")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-most", type=int, default=10**9, help="rounds of this call")
    given = parser.parse_args()
    code, calm = laid_out(given.folder), given.folder / "calm.json"
    if not calm.exists():
        each, start = Round(given.folder, code, "calm"), time.monotonic()
        status, said = each.run()
        if status:
            sys.exit(f"the undisturbed run failed:\n{said[-4000:]}")
        calm.write_text(json.dumps({"seconds": time.monotonic() - start, "digests": each.digests()}, indent=1))
        print(f"undisturbed: {time.monotonic() - start:.0f} s, {len(each.digests())} files", flush=True)
        given.at_most -= 1
    expected, lines = json.loads(calm.read_text()), given.folder / "rounds.jsonl"
    done = len(lines.read_text().splitlines()) if lines.exists() else 0
    for number in range(done, min(given.rounds, done + given.at_most)):
        each = Round(given.folder, code, f"round{number:02d}")
        draw = random.Random(f"{given.seed}/{number}")
        found = {"round": number, **judged(disturbed(each, draw, expected["seconds"]), expected["digests"], each)}
        with lines.open("a") as file:
            file.write(json.dumps(found) + "\n")
        print(json.dumps(found), flush=True)
        if not found["wrong"]:
            shutil.rmtree(each.root)
    if lines.exists():
        rows = [json.loads(line) for line in lines.read_text().splitlines()]
        sound = sum(not row["wrong"] for row in rows)
        print(f"{sound} of {len(rows)} rounds sound", flush=True)
        sys.exit(sound != len(rows))


if __name__ == "__main__":
    main()
