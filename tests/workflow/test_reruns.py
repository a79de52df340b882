"""What is made again after a change: planned by the real workflow, with real keys; docs/reruns.md is this test's table.

Jobs compute next to nothing (tests/support/light), so that what is left is the deciding. Each change is made to a copy
of one finished study. `make test-reruns` makes all of them, a quarter of an hour of two cores, and writes the table;
`make test` makes some, and those that are to change nothing all at once, and holds the table to them.
"""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs/reruns.md"
STUDY = """
study: small
pictures: {artists: [maren, joris, odile], per_artist: 12}
plan: {gallery: [4, 3], query: [3]}
training: {steps: 3, rank: 2, alpha: 2, batch: 2, warmup: 1}
base: {model: results/base}
generation:
  {num_inference_steps: [2], guidance_scale: [1, 3], prompts: [a painting], seeds: [0, 1], batch: 6, worth: null}
extractors: {clip: null}
weights: {kernels: [delta], modules: [gradient, plain]}
resources: {artists_per_job: 1, device: cpu}
"""
STAGES = {
    "pictures": ["collect_pictures"],
    "LoRAs": ["train_loras"],
    "generated": ["generate_pictures"],
    "features": ["extract_features", "extract_controls"],
    "weights": ["gram", "module_grams", "base_sensitivity"],
    "products": ["ask_gradients"],
}
# Rows of the plan, copies into folders and the list of them: whatever calls them, they are no work.
NO_WORK = {"plan_artist", "unpack_loras", "list_loras", "features", "weights"}


@dataclass(frozen=True)
class Change:
    """A change of the study in a folder, and what works after it, stage by stage; `follows`: tables and the like."""

    name: str
    make: Callable[[Path], object]
    expected: dict[str, int]
    follows: bool = True
    targets: tuple[str, ...] = ("features", "weights", "results/small/tables/retrieval.parquet")


def edit(file: str, *pairs: tuple[str, str]) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        text = (root / file).read_text()
        for before, after in pairs:
            assert before in text, before
            text = text.replace(before, after, 1)
        (root / file).write_text(text)

    return change


def said(*pairs: tuple[str, str]) -> Callable[[Path], object]:
    return edit("small.yaml", *pairs)


def touched(root: Path) -> None:
    for path in [*(root / "workflow").rglob("*"), *(root / "results/base").rglob("*")]:
        path.touch()


def other_bytes(file: str) -> Callable[[Path], object]:
    """One byte is another; size and date are as they were, as `cp -p`, `rsync -a` and backups leave them."""

    def change(root: Path) -> None:
        path = root / file
        data, times = bytearray(path.read_bytes()), path.stat()
        data[-1] ^= 1
        beside = path.with_name("restored")
        beside.write_bytes(data)
        os.utime(beside, ns=(times.st_atime_ns, times.st_mtime_ns - 10**12))
        beside.replace(path)

    return change


def older(file: str, *pairs: tuple[str, str]) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        edit(file, *pairs)(root)
        os.utime(root / file, ns=(10**18, 10**18))

    return change


UNET = "results/base/unet/diffusion_pytorch_model.safetensors"
LORA = "results/small/loras/odile/01.safetensors"
EVERYTHING = {"LoRAs": 3, "generated": 6, "features": 6, "weights": 3, "products": 1}
TRAINER, METRIC = "workflow/lora_atlas/diffusion/train.py", "workflow/lora_atlas/metrics/retrieval.py"
MORE = "clip: null, more: {library: control, model: colour_moments, pretrained: null}"
AGAIN = "clip: null, again: {library: timm, model: workflow/resources/mini/dino, pretrained: null}"


def first(line: str) -> Callable[[Path], object]:
    return said(("study: small", f"study: small\n{line}"))


def twice_altered(root: Path) -> None:
    for file in [root / LORA, *(root / "results/cache").rglob("01.safetensors")]:
        other_bytes(str(file.relative_to(root)))(root)


# Changes of what is there: a job is called, and finds what it would make.
KEPT = {
    "a variant with one extractor less", "another study of the same artists", "a LoRA altered, with an older date",
    "a table altered, with an older date",
}  # fmt: skip
# One of each kind, for every day.
OFTEN = {
    "an artist more", "another base, with an older date", "a metric's code, with an older date", "another prompt",
    "the same extractor under another name", "another study of the same artists",
    "a LoRA altered, and what is kept of it",
}  # fmt: skip
OTHER = ("other_features", "other_weights")
SECOND = ("features", "weights", "results/second/tables/retrieval.parquet")
NEW = {"pictures": 1, "LoRAs": 1, "generated": 2, "features": 4, "weights": 2, "products": 1}
CHANGES = [
    Change("nothing", lambda root: None, {}, False),
    Change("an artist more", said(("odile]", "odile, berthe]")), NEW),
    Change("an artist less", said((", odile]", "]")), {"weights": 2, "products": 1}),
    Change("keys in another order", said(("{steps: 3, rank: 2,", "{rank: 2, steps: 3,")), {}, False),
    Change("a default spelled out", said(("warmup: 1", "warmup: 1, init: shared")), {}, False),
    Change("2 as 2.0", said(("alpha: 2", "alpha: 2.0")), {}, False),
    Change("the base under another path", said(("results/base", "./results/base")), {}, False),
    Change("all code and models touched", touched, {}, False),
    Change("another base, with an older date", other_bytes(UNET), EVERYTHING),
    Change("another device", said(("device: cpu", "device: auto")), {}, False),
    Change(
        "more memory and threads",
        said(
            ("device: cpu", "device: cpu, mem_mb: 9000, threads: 2"),
            ("weights:", "attribution: {memory_mb: 500, batch: 3}\nweights:"),
        ),
        {},
        False,
    ),
    Change("another store of what is fetched", said(("per_artist", "store: elsewhere, per_artist")), {}, False),
    Change("another rank", said(("rank: 2", "rank: 4")), EVERYTHING | {"weights": 2}),
    Change("another seed", first("seed: 1"), EVERYTHING | {"pictures": 3, "features": 12, "weights": 2}),
    Change("a comment in code", edit(TRAINER, ("import hashlib", "# why\nimport hashlib")), {}, False),
    Change(
        "a metric's code, with an older date",
        older(METRIC, ("import numpy as np\n", "import numpy as np\n\nX = 1\n")),
        {},
    ),
    Change("an extractor more", said(("clip: null", MORE)), {"features": 3}),
    Change("the same extractor under another name", said(("clip: null", AGAIN)), {}),
    Change("another prompt", said(("[a painting]", "[a picture]")), {"generated": 6, "features": 6}),
    Change("a guidance scale more", said(("[1, 3]", "[1, 3, 5]")), {"generated": 3, "features": 3}),
    Change("another probe", said(("weights: {", "weights: {probe: {samples: 8}, ")), {"weights": 1, "products": 1}),
    Change(
        "a variant of another rank",
        first("variants: {other: {training: {rank: 4}}}"),
        EVERYTHING | {"weights": 1},
        False,
        OTHER,
    ),
    Change(
        "a variant with one extractor less", first("variants: {other: {extractors: {dino: null}}}"), {}, False, OTHER
    ),
    Change("another study of the same artists", said(("study: small", "study: second")), {}, False, SECOND),
    Change("a LoRA altered, with an older date", other_bytes(LORA), {}, False),
    Change("a table altered, with an older date", other_bytes("results/small/pictures/odile.parquet"), {}, False),
    Change("a LoRA altered, and what is kept of it", twice_altered, {"LoRAs": 1}, False),
]


NOTHING = [change for change in CHANGES if not change.expected and not change.follows and change.name not in KEPT]


def all_at_once(root: Path) -> None:
    for change in reversed(NOTHING):  # an edit may be of what another leaves
        change.make(root)


EVERY = os.environ.get("LORA_ATLAS_CHANGES") == "all"
if not EVERY:
    CHANGES = [
        Change("all that makes nothing old, at once", all_at_once, {}, False),
        *(change for change in CHANGES if change.name in OFTEN),
    ]


@dataclass(frozen=True)
class Seen:
    planned: Counter[str]
    called: Counter[str]
    works: Counter[str]

    def stages(self) -> dict[str, int]:
        found = {stage: sum(self.works[rule] for rule in rules) for stage, rules in STAGES.items()}
        return {stage: number for stage, number in found.items() if number}

    def follows(self) -> int:
        costly = {rule for rules in STAGES.values() for rule in rules}
        return sum(number for rule, number in self.works.items() if rule not in costly | NO_WORK)


def snakemake(root: Path, *arguments: str) -> str:
    light = REPOSITORY / "tests/support/light"
    environment = {**os.environ, "PYTHONPATH": str(light), "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    done = subprocess.run(
        [str(Path(sys.executable).with_name("snakemake")), "--cores", "2", *arguments, "--configfile", "small.yaml"],
        cwd=root, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def bare(counts: dict[str, int]) -> Counter[str]:
    found: Counter[str] = Counter()
    for rule, number in counts.items():
        found[rule.removeprefix("other_")] += number
    return found


def run(root: Path, targets: Sequence[str]) -> Seen:
    text = snakemake(root, "--dry-run", *targets)
    stats = re.search(r"^job +count\n[- ]+\n(.*?)^total", text, re.MULTILINE | re.DOTALL)
    planned = (
        {rule: int(number) for rule, number in (line.split() for line in stats[1].splitlines() if line)}
        if stats
        else {}
    )
    text = snakemake(root, *targets)
    called = Counter(re.findall(r"^Finished jobid: \d+ \(Rule: (\w+)\)", text, re.MULTILINE))
    works = Counter(called)
    names = "|".join(called)  # what a job says may stand behind an unfinished line of Snakemake's
    for rule in re.findall(rf"({names}): made before", text):
        works[rule] -= 1
    for rule, number in re.findall(rf"({names}): made (\d+) of \d+ parts", text):
        works[rule] += int(number) - 1
    return Seen(bare(planned), bare(called), bare(works))


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """A finished study."""
    root = tmp_path_factory.mktemp("reruns") / "study"
    shutil.copytree(REPOSITORY, root, ignore=shutil.ignore_patterns(".*", "results", "__pycache__", "*.egg-info"))
    shutil.copytree(root / "workflow/resources/mini/base", root / "results/base")
    (root / "small.yaml").write_text(STUDY)
    snakemake(root, *CHANGES[0].targets)
    return root


@pytest.fixture(scope="module")
def seen(done) -> dict[str, Future[Seen]]:
    def after(change: Change) -> Seen:
        root = done.parent / re.sub(r"\W+", "_", change.name)
        shutil.copytree(
            done, root
        )  # a fresh clone, too: every file has another time of its inode, code has one of its own
        change.make(root)
        found = run(root, change.targets)
        shutil.rmtree(root)
        return found

    with ThreadPoolExecutor(2) as pool:
        return {change.name: pool.submit(after, change) for change in CHANGES}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
def test_exactly_what_must_work_works(seen, change):
    found = seen[change.name].result()
    assert found.stages() == change.expected
    assert (found.follows() > 0) == change.follows


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
def test_a_dry_run_tells_what_then_runs(seen, change):
    found = seen[change.name].result()
    assert found.planned == found.called


def row(change: Change, found: Seen) -> str:
    stages = " | ".join(str(found.stages().get(stage, "–")) for stage in STAGES)
    return f"| {change.name} | {found.planned.total() or '–'} | {stages} | {found.follows() or '–'} |"


def test_the_page_has_this_table(seen):
    """Written anew where it differs and all changes were made, to be committed."""
    head = ["| change | planned | " + " | ".join(STAGES) + " | what follows |", "| --- " * (len(STAGES) + 3) + "|"]
    rows = {change.name: row(change, seen[change.name].result()) for change in CHANGES}
    text = PAGE.read_text()
    if not EVERY:
        assert all(text.count(f"{rows[name]}\n") == 1 for name in OFTEN)
        return
    made = re.sub(
        r"(?<=<!-- table -->\n).*?(?=<!-- end -->)",
        lambda _: "\n".join([*head, *rows.values()]) + "\n",
        text,
        flags=re.DOTALL,
    )
    if made != text:
        PAGE.write_text(made)
    assert made == text
