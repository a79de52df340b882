"""docs/reliability.md, from the marker `fault` of the tests: `python tests/support/faults.py FOLDER` writes it.

`@pytest.mark.fault(area, fault, outcome)` stands on a test that lets the fault really happen. Markers are read from the
source: nothing is imported and nothing run. What no test of pytest can hold is listed here, with the reason.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
AREAS = (
    "downloads",
    "pictures",
    "LoRA files",
    "training",
    "Snakemake and SLURM",
    "caches",
    "tables and pages",
    "configuration",
)
# Fault → what happens; tests/slurm/run.sh lets each happen on a real SLURM, and `make slurm-test` runs it.
ON_SLURM = {
    "a node dies (its slurmd, the step and the training: SIGKILL) in the middle of training": "training goes on on "
    "another node from its last checkpoint; the LoRAs have the bytes of an undisturbed run",
    "the driver is killed (SIGKILL) while its job trains": "after `snakemake --unlock` the next run cancels the job "
    "that was left and goes on; the same bytes",
}
# Fault → why no row above is about it.
APART = {
    "SLURM requeues a job that Snakemake tries again, too": "profiles/slurm turns requeueing off (`slurm-no-requeue`).",
    "a signal before the walltime ends": "The SLURM plugin asks for none, so that none is counted on: training saves "
    "its state every `resources.checkpoint_every` steps and looks at the clock itself.",
    "with --keep-incomplete, half an output counts as whole": "Outputs that take long are written beside their place "
    "and renamed: there is no half of them under the name (rows on tables, training and downloads).",
    "an entry of Snakemake's cache between workflows that is cut": "That cache is not used; the store in its place "
    "looks at every byte (rows on caches).",
    "an entry of the cache that is forged with all its digests, by somebody who may write there": "Not told from a "
    "true one. Entries that anybody may write to are not used; a group that shares a cache trusts its members.",
    "a shared file system shows a file late": "profiles/slurm waits for 60 s (`latency-wait`). One machine cannot let "
    "it happen.",
    "SLURM's controller dies": "Not tried.",
    "the scratch disk of one node of a cluster is full": "No stage keeps anything there but for seconds; results and "
    "cache lie on the shared disk, whose end is a row of its own.",
    "a device computes wrongly": "Not told, unless a number is not finite: LoRAs are not trained twice and compared.",
    "hostile captions in `snakemake --report`, which shows them as HTML": "Its captions and labels are this "
    "project's own words; the pages that it holds escape what comes from outside (rows on tables and pages).",
    "a bit of a JPEG in a folder of one's own flips, and it still decodes": "Nobody said what its bytes should be: it "
    "is another picture. Pictures that were fetched are held to their hash whenever they are read.",
    "a bit of a model's weights flips in the hub's cache, after they were fetched": "They are held to their hash when "
    "they are fetched, and not whenever they are read: they are tens of gigabytes.",
    "a hole in torch's restricted unpickler": "Trusted, in the pinned version, and kept in a process with limits; "
    "`weights.pickles: refuse` opens no pickle at all.",
}  # fmt: skip
_HEAD = """# What goes wrong, and what then happens

Each row is a test that lets the fault really happen: a server that misbehaves, a process that is killed, a file that is
damaged or means harm. This page is made from the tests' markers (`make docs`), and a test holds it to them.

Beside them stand two programs that take longer than a test may: `benchmarks/soak.py` kills the driver or a job of a
whole study at random moments (20 of 20 rounds ended in the bytes of an undisturbed run), and `make fuzz` damages every
kind of input for ten minutes each. What they came to is in [RESULTS.md](../benchmarks/RESULTS.md)."""


@dataclass(frozen=True)
class Fault:
    """A row of the page. `file`: path of the test's file, in the project."""

    area: str
    fault: str
    outcome: str
    test: str
    file: str


def marked(root: Path = ROOT) -> list[Fault]:
    """All rows, in the order of the files and of the tests in them; raises ValueError for a marker in another form."""
    return [
        fault for path in sorted((root / "tests").rglob("test_*.py")) for fault in _of(path, path.relative_to(root))
    ]


def _of(path: Path, name: Path) -> Iterator[Fault]:
    text = path.read_text(encoding="utf-8")
    if "mark.fault(" not in text:
        return
    for node in ast.parse(text).body:
        if not isinstance(node, ast.FunctionDef):
            continue
        for call in node.decorator_list:
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.fault":
                words = [each.value for each in call.args if isinstance(each, ast.Constant)]
                if len(words) != 3 or not all(isinstance(w, str) and w for w in words) or words[0] not in AREAS:
                    raise ValueError(
                        f"{name}, line {call.lineno}: expected fault(area, fault, outcome), three texts, the area one "
                        f"of {', '.join(AREAS)}"
                    )
                if not node.name.startswith("test_"):
                    raise ValueError(f"{name}, line {call.lineno}: {node.name} is no test")
                yield Fault(*words, test=node.name, file=name.as_posix())


def page(root: Path = ROOT) -> str:
    """docs/reliability.md."""
    rows, lines = marked(root), [_HEAD]
    for area in AREAS:
        lines += ["", f"## {area[0].upper()}{area[1:]}", "", "| fault | what happens | test |", "| --- | --- | --- |"]
        for row in rows:
            if row.area == area:
                test = f"[{row.test.removeprefix('test_')}](../{row.file})"
                lines.append(f"| {_cell(row.fault)} | {_cell(row.outcome)} | {test} |")
        if area == "Snakemake and SLURM":
            lines += [
                f"| {_cell(fault)} | {_cell(outcome)} | [run.sh](../tests/slurm/run.sh) |"
                for fault, outcome in ON_SLURM.items()
            ]
    lines += ["", "## What is no row", "", "| fault | why |", "| --- | --- |"]
    lines += [f"| {_cell(fault)} | {_cell(why)} |" for fault, why in APART.items()]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    for sign, written in (("&", "&amp;"), ("<", "&lt;"), ("|", "·"), ("*", "\\*")):
        text = text.replace(sign, written)
    return text.replace("__reduce__", "`__reduce__`").replace("LOAD_TRUNCATED_IMAGES", "`LOAD_TRUNCATED_IMAGES`")


if __name__ == "__main__":
    Path(sys.argv[1], "reliability.md").write_text(page(), encoding="utf-8")
