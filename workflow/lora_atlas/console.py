"""The command ``lora-atlas``: a short way to say the Snakemake commands that most people need, in any folder.

    lora-atlas map FOLDER                 which of these LoRA files are alike, copies, of which base
    lora-atlas query FILE [FOLDER]        which of them is a new file near
    lora-atlas find PICTURES FOLDER       which of them do pictures speak for
    lora-atlas one-step PICTURES          a LoRA of pictures, without training
    lora-atlas run STUDY                  a study: one that comes with LoRA Atlas, or a file of your own
    lora-atlas estimate STUDY             what it will cost, before it runs
    lora-atlas demo                       the embedded study

It decides nothing: it prints the command that it stands for, and runs it. What it does not know goes to Snakemake,
after ``--``. Results lie in results/ of the folder it is called in.
"""

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from . import __version__
from .code import PROJECT
from .config import stated
from .pictures.sources import slug

Run = Callable[[Sequence[str]], int]


class ConsoleError(ValueError):
    """What was asked for is not there; the message says where it was looked for."""


def workflow() -> Path:
    """The folder of the Snakefile."""
    if not (PROJECT / "Snakefile").is_file() or not (PROJECT / "workflow" / "rules").is_dir():
        raise ConsoleError(
            f"{PROJECT}: the workflow is not there; install LoRA Atlas from its repository: pip install ."
        )
    return PROJECT


def studies(folder: Path) -> dict[str, Path]:
    """The studies that come with LoRA Atlas, by their names."""
    return {path.stem: path for path in sorted((folder / "workflow" / "studies").glob("*.yaml"))}


def command(arguments: argparse.Namespace) -> list[str]:
    """The Snakemake command that some arguments stand for; raises ConsoleError for paths that are not there."""
    folder = workflow()
    made = ["snakemake", "-s", str(folder / "Snakefile"), "--cores", str(arguments.cores), *arguments.rest]
    settings: dict[str, object] = {}
    target, configs = None, []
    if arguments.action in ("map", "query", "find"):
        files = there(arguments.folder or _beside(arguments))
        configs, settings = [studies(folder)["my_loras"]], {"folder": str(files), "study": _name(files)}
    if arguments.action in ("run", "estimate"):
        configs = [_study(arguments.study, folder)]
    if arguments.action in ("query", "find", "one-step"):
        settings["query"] = str(there(arguments.asked))
        target = {"query": "query", "find": "attribute", "one-step": "one_step"}[arguments.action]
    if arguments.action == "estimate":
        target = "estimate"
    if getattr(arguments, "base", None):
        settings["base"] = {"model": _model(arguments.base)} | (
            {"revision": arguments.revision} if arguments.revision else {}
        )
    if configs:
        made += ["--configfile", *map(str, configs)]
    if settings:
        made += ["--config", *(stated(key, value) for key, value in settings.items())]
    return [*made, *(["--", target] if target else [])]


def _full(path: str) -> Path:
    """A path from the root, links as they are."""
    return Path(os.path.abspath(Path(path).expanduser()))


def there(path: str) -> Path:
    """The full path of something that exists."""
    full = _full(path)
    if not full.exists():
        raise ConsoleError(f"{path}: there is no such file or folder; it was looked for at {full}")
    return full


def _beside(arguments: argparse.Namespace) -> str:
    """The folder that a file is asked about in, where none is named: its own; of pictures there is none."""
    if arguments.action == "query" and _full(arguments.asked).is_file():
        return str(_full(arguments.asked).parent)
    raise ConsoleError(
        f"{arguments.action}: name the folder of LoRA files, too: lora-atlas {arguments.action} WHAT FOLDER"
    )


def _name(folder: Path) -> str:
    """The study of a folder of LoRA files, so that two folders have results of their own."""
    return slug(folder.name) or "loras"


def _study(name: str, folder: Path) -> Path:
    known = studies(folder)
    if name in known:
        return known[name]
    full = _full(name)
    if full.is_file():
        return full
    raise ConsoleError(f"{name}: no study of that name, and no file at {full}; there are: {', '.join(known)}")


def _model(name: str) -> str:
    """A folder by its full path; what is none is an id of the hub."""
    full = _full(name)
    return str(full) if full.is_dir() else name


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "lora-atlas", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="lora-atlas [--version] ACTION … [--cores N] [-- what else Snakemake is told]",
    )  # fmt: skip
    made.add_argument("--version", action="version", version=__version__)
    actions = made.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, about: str) -> argparse.ArgumentParser:
        one = actions.add_parser(name, help=about, description=about)
        one.add_argument("--cores", default="all", metavar="N", help="processor cores (all)")
        return one

    one = action("map", "Which of these LoRA files are alike, copies, of which base?")
    one.add_argument("folder", metavar="FOLDER", help="of LoRA files")
    one = action("query", "Which LoRAs of a folder is a file near?")
    one.add_argument("asked", metavar="FILE", help="a LoRA file, or a folder of them")
    one.add_argument("folder", metavar="FOLDER", nargs="?", help="of LoRA files (the one that the file lies in)")
    for name, about in (
        ("find", "Which LoRAs of a folder do pictures speak for?"),
        ("one-step", "Make a LoRA of pictures in one step, without training."),
    ):
        one = action(name, about)
        one.add_argument("--base", metavar="MODEL", help="the base of these LoRAs: a diffusers folder, or a hub id")
        one.add_argument("--revision", metavar="COMMIT", help="of a hub id")
        one.add_argument("asked", metavar="PICTURES", help="a picture, a folder of pictures, or a folder of such")
        if name == "find":
            one.add_argument("folder", metavar="FOLDER", nargs="?", help="of LoRA files")
    for name, about in (("run", "Run a study."), ("estimate", "What will a study cost?")):
        one = action(name, about)
        one.add_argument("study", metavar="STUDY", help="a study's name, or a configuration of your own")
    action("demo", "The embedded study, from nothing.")
    return made


def main(given: Sequence[str] | None = None, run: Run | None = None) -> int:
    """The exit status: Snakemake's, or 2 where what was asked for is not there."""
    words = list(sys.argv[1:] if given is None else given)
    cut = words.index("--") if "--" in words else len(words)
    arguments = parser().parse_args(words[:cut])
    arguments.rest = words[cut + 1 :]
    try:
        made = command(arguments)
    except ConsoleError as error:
        print(f"lora-atlas: {error}", file=sys.stderr)
        return 2
    print(shlex.join(made), file=sys.stderr, flush=True)
    status = (run or _run)(made)
    if status == 0 and arguments.action == "demo" and not arguments.rest:
        from .summary import main as summary

        summary(["results/demo"])
    return status


def _run(made: Sequence[str]) -> int:
    # On a CPU two spinning thread pools on two cores are slower than one.
    environment = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ
    return subprocess.run([sys.executable, "-m", *made], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
