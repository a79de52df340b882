"""The command ``lora-atlas``: a short way to say the Snakemake commands that most people need, in any folder.

    lora-atlas map FOLDER                 which of these LoRA files are alike, copies, of which base
    lora-atlas query FILE [FOLDER]        which of them is a new file near; or which of a STUDY's
    lora-atlas find PICTURES FOLDER       which of them do pictures speak for
    lora-atlas one-step PICTURES          a LoRA of pictures, without training
    lora-atlas run STUDY                  a study: one that comes with LoRA Atlas, or a file of your own
    lora-atlas estimate STUDY             what it will cost, before it runs
    lora-atlas demo                       the embedded study

It decides nothing: it prints the command that it stands for, and runs it. What it does not know goes to Snakemake,
after ``--``: ``lora-atlas map FOLDER -- --config 'weights={modules: [plain]}'``. Results lie in results/ of the folder
it is called in.
"""

import argparse
import contextlib
import difflib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from . import __version__, origin
from .code import PROJECT
from .config import stated
from .keys import read_yaml
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


# Options of Snakemake of which the last alone counts: what is said after ``--`` joins what this command says.
JOINED = {"--config": "config", "-C": "config", "--configfile": "configfile", "--configfiles": "configfile"}
# Where it is said how much is to be said, or nothing is run, Snakemake says it as it does.
DRY = ("-n", "--dry-run", "--dryrun")
TALKS = ("--quiet", "-q", "--verbose", *DRY)


def command(arguments: argparse.Namespace) -> list[str]:
    """The Snakemake command that some arguments stand for; raises ConsoleError for paths that are not there."""
    folder = workflow()
    rest, given = _joined(arguments.rest)
    _check(given)
    quiet = [] if any(word.startswith(TALKS) for word in rest) else ["--quiet", "rules", "host", "reason"]
    made = ["snakemake", "-s", str(folder / "Snakefile"), *quiet, "--cores", str(arguments.cores), *rest]
    settings: dict[str, object] = {}
    target, configs = None, []
    if arguments.action in ("map", "query", "find"):
        named = arguments.folder or _beside(arguments)
        asked = None if arguments.action == "map" else _asked_study(named, folder)
        if asked is not None:
            configs = [asked]
        else:
            files = there(named)
            configs, settings = [studies(folder)["my_loras"]], {"folder": str(files), "study": _name(files)}
    if arguments.action == "one-step":
        settings["study"] = "one_step"
    if arguments.action in ("run", "estimate"):
        configs = [_study(arguments.study, folder)]
    if arguments.action in ("query", "find", "one-step"):
        settings["query"] = str(there(arguments.asked))
        target = {"query": "query", "find": "attribute", "one-step": "one_step"}[arguments.action]
    if arguments.action == "estimate":
        target = "estimate"
    if getattr(arguments, "base", None):
        settings["base"] = {"model": _model(arguments.base, folder)} | (
            {"revision": arguments.revision} if arguments.revision else {}
        )
    elif target in ("attribute", "one_step") and not _has_base(settings, given["config"]):
        raise ConsoleError(
            f"{arguments.action}: pictures are asked about by the base that the LoRAs are of: --base FOLDER, in "
            "diffusers' format, or --base OWNER/NAME --revision COMMIT of the hub, or one that comes with LoRA Atlas: "
            + ", ".join(bases(folder))
        )
    if files_given := [*map(str, configs), *given["configfile"]]:
        made += ["--configfile", *files_given]
    if stated_ := [*(stated(key, value) for key, value in settings.items()), *given["config"]]:
        made += ["--config", *stated_]
    return [*made, *(["--", target] if target else [])]


def _has_base(settings: Mapping[str, object], given: Sequence[str]) -> bool:
    """Whether a base is named: by --config, or by the study that is asked."""
    return "study" not in settings or any(each.startswith("base=") for each in given)


def _check(given: Mapping[str, Sequence[str]]) -> None:
    """Raise ConsoleError for what Snakemake would meet with a traceback."""
    for file in given["configfile"]:
        there(file)
    for word in given["config"]:
        name, _, value = word.partition("=")
        section, dot, key = name.partition(".")
        if dot:
            raise ConsoleError(f"--config {word}: a key stands within its section: '{section}={{{key}: {value}}}'")


def _joined(rest: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """What is left of words for Snakemake without its options of JOINED, and what these were given."""
    left: list[str] = []
    found: dict[str, list[str]] = {"config": [], "configfile": []}
    into: list[str] | None = None
    for n, word in enumerate(rest):
        name, is_, value = word.partition("=")
        if word == "--":
            return [*left, *rest[n:]], found
        if name in JOINED and (not is_ or name.startswith("--")):
            into = found[JOINED[name]]
            if is_:
                into.append(value)
                into = None
        elif into is not None and not word.startswith("-") and ("=" in word or into is found["configfile"]):
            into.append(word)
        else:
            into = None
            left.append(word)
    return left, found


def bases(folder: Path) -> dict[str, Path]:
    """The bases that come with LoRA Atlas, by their names."""
    return {path.parent.name: path for path in sorted((folder / "workflow" / "resources").glob("*/base"))}


def _full(path: str) -> Path:
    """A path from the root, links as they are."""
    return Path(os.path.abspath(Path(path).expanduser()))


def there(path: str) -> Path:
    """The full path of something that exists."""
    full = _full(path)
    if not full.exists():
        where = "" if path == str(full) else f"; it was looked for at {full}"
        beside = [each.name for each in full.parent.iterdir()] if full.parent.is_dir() else []
        alike = difflib.get_close_matches(full.name, beside, 1)
        meant = f"; did you mean {full.parent / alike[0]}?" if alike else ""
        raise ConsoleError(f"{path}: there is no such file or folder{where}{meant}")
    return full


def _beside(arguments: argparse.Namespace) -> str:
    """The folder that a file is asked about in, where none is named: its own; of pictures there is none."""
    if arguments.action == "query" and _full(arguments.asked).is_file():
        return str(_full(arguments.asked).parent)
    raise ConsoleError(
        f"{arguments.action}: name the folder of LoRA files, too: lora-atlas {arguments.action} WHAT FOLDER"
    )


def _name(folder: Path) -> str:
    """The study of a folder of LoRA files, so that two folders have results of their own, whatever they are called."""
    return origin.unused(slug(folder.name) or "loras", folder)


def _asked_study(named: str, folder: Path) -> Path | None:
    """The configuration of a study whose LoRAs are asked about; None for a folder of LoRA files."""
    full = _full(named)
    if (full / "plan.parquet").is_file():
        raise ConsoleError(
            f"{named}: the results of a study that trained its LoRAs, no folder of LoRA files; name the study itself, "
            "as for lora-atlas run: a name that it comes with, or your configuration's file"
        )
    if full.is_dir():
        return None
    known = studies(folder)
    return full if full.is_file() and full.suffix in (".yaml", ".yml") else known.get(named)


def _study(name: str, folder: Path) -> Path:
    known = studies(folder)
    if name in known:
        return known[name]
    full = _full(name)
    if full.is_file():
        return full
    raise ConsoleError(
        f"{name}: no study of that name, and no file at {full}{_meant(name, known)}; there are: {', '.join(known)}"
    )


def _meant(word: str, known: Iterable[str]) -> str:
    alike = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {alike[0]}?" if alike else ""


def _model(name: str, folder: Path) -> str:
    """A folder by its full path, or a base that comes with LoRA Atlas; what is none is an id of the hub."""
    full = _full(name)
    return str(full if full.is_dir() else bases(folder).get(name, name))


ACTIONS = ("map", "query", "find", "one-step", "run", "estimate", "demo")
WHERE = (
    "Results lie in results/ of the folder that this is called in. What Snakemake is to be told stands after --, as in "
    "lora-atlas map FOLDER -- --config 'weights={modules: [plain]}'."
)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "lora-atlas", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="lora-atlas [--version] ACTION … [--cores N] [-- what else Snakemake is told]",
    )  # fmt: skip
    made.add_argument("--version", action="version", version=__version__)
    actions = made.add_subparsers(dest="action", required=True, metavar="ACTION", prog="lora-atlas")

    def action(name: str, about: str) -> argparse.ArgumentParser:
        one = actions.add_parser(name, help=about, description=about, epilog=WHERE)
        one.add_argument("--cores", default="all", metavar="N", help="processor cores (all)")
        return one

    one = action("map", "Which of these LoRA files are alike, copies, of which base?")
    one.add_argument("folder", metavar="FOLDER", help="of LoRA files")
    one = action("query", "Which LoRAs of a folder is a file near?")
    one.add_argument("asked", metavar="FILE", help="a LoRA file, or a folder of them")
    one.add_argument("folder", metavar="FOLDER", nargs="?", help="of LoRA files (that of the file); or a STUDY")
    for name, about in (
        ("find", "Which LoRAs of a folder do pictures speak for?"),
        ("one-step", "Make a LoRA of pictures in one step, without training."),
    ):
        one = action(name, about)
        one.add_argument("--base", metavar="MODEL", help="the base of these LoRAs: a diffusers folder, or a hub id")
        one.add_argument("--revision", metavar="COMMIT", help="of a hub id")
        one.add_argument("asked", metavar="PICTURES", help="a picture, a folder of pictures, or a folder of such")
        if name == "find":
            one.add_argument("folder", metavar="FOLDER", nargs="?", help="of LoRA files; or a STUDY")
    for name, about in (("run", "Run a study."), ("estimate", "What will a study cost?")):
        one = action(name, about)
        one.add_argument("study", metavar="STUDY", help="a study's name, or a configuration of your own")
    action("demo", "The embedded study, from nothing.")
    return made


def main(given: Sequence[str] | None = None, run: Run | None = None) -> int:
    """The exit status: Snakemake's; 2 where what was asked for is not there, 1 where nothing of it could be read."""
    words = list(sys.argv[1:] if given is None else given)
    cut = words.index("--") if "--" in words else len(words)
    try:
        if words[:1] and not words[0].startswith("-") and words[0] not in ACTIONS:
            raise ConsoleError(
                f"{words[0]}: no action of lora-atlas{_meant(words[0], ACTIONS)}; there are: {', '.join(ACTIONS)}"
            )
        arguments, unknown = parser().parse_known_args(words[:cut])
        if unknown:
            raise ConsoleError(_misplaced(words[:cut], unknown))
        arguments.rest = words[cut + 1 :]
        made = command(arguments)
        if not os.access(".", os.W_OK):
            raise ConsoleError(
                f"{Path.cwd()}: results lie in the folder that this is called in, and it may not be written to; call "
                "it in another (cd), and name files by their full paths"
            )
    except ConsoleError as error:
        print(f"lora-atlas: {error}", file=sys.stderr)
        return 2
    beside = Path(sys.executable).with_name("snakemake")
    said = [str(beside), *made[1:]] if beside.is_file() else [sys.executable, "-m", *made]
    print(shlex.join(said), file=sys.stderr, flush=True)
    started = time.time()
    status = (run or _run)(made)
    if status and any(Path(".snakemake", "locks").glob("*")):
        words_ = shlex.join(["lora-atlas", *words[:cut], "--", "--unlock"])
        print(f"A run was killed here, or is still running. If none is: {words_}", file=sys.stderr)
    if status == 0 and not {*DRY, "--unlock"} & set(arguments.rest):
        _say_where(arguments, made, started)
        if arguments.action in ANSWERS:
            status = _answered(arguments, made, started)
    if status == 0 and arguments.action == "demo" and not arguments.rest:
        from .summary import main as summary

        summary(["results/demo"])
    return status


def _misplaced(words: Sequence[str], unknown: Sequence[str]) -> str:
    """What to do with words that no action takes."""
    if not unknown[0].startswith("-"):
        return (
            f"{unknown[0]}: one word too many; a name with spaces stands in quotes: lora-atlas {words[0]} 'MY FOLDER'"
        )
    left: list[str] = []
    rest = list(unknown)
    for word in reversed(words):  # what belongs behind -- stands at the end, mostly
        if rest and word == rest[-1]:
            rest.pop()
        else:
            left.insert(0, word)
    return f"{unknown[0]}: not known here; what Snakemake is to be told stands after --: " + shlex.join(
        ["lora-atlas", *left, "--", *unknown]
    )


def _say_where(arguments: argparse.Namespace, made: Sequence[str], started: float) -> None:
    """What is there and the page to open, where nothing was to be done: Snakemake itself then says neither."""
    if arguments.action not in ("map", "run", "demo"):
        return
    try:
        results = Path("results", _study_of(made))
        page = results / "atlas.html"
        inventory = results / "tables/loras.parquet"
        if arguments.action == "map" and inventory.stat().st_mtime < started:  # else its job has said it
            from . import tables
            from .collection.inventory import told

            print(told(tables.read(inventory, "loras").to_pylist()), file=sys.stderr)
        if not page.is_file() or page.stat().st_mtime >= started:
            return
    except (OSError, ValueError):  # another layout of results than this command's own
        return
    print(f"Nothing has changed since it was made.\nThe page to open: {page.resolve()}", file=sys.stderr)


# Where the answers of a question are under a study's results, and the table that they are.
ANSWERS = {"query": ("query", "query"), "find": ("attribution", "attributions")}


def _answered(arguments: argparse.Namespace, made: Sequence[str], started: float) -> int:
    """1 where nothing of what was asked about could be read, else 0. An answer that was there is said again: Snakemake
    has nothing to do then, and says so alone."""
    from . import tables

    folder, table = ANSWERS[arguments.action]
    try:
        asked, results = there(arguments.asked), Path("results", _study_of(made))
        path = results / folder / f"{origin.unused_answer(slug(asked.stem), asked, results, folder)}.parquet"
        rows = tables.read(path, table).to_pylist()
        said_now = path.stat().st_mtime >= started
    except (OSError, ValueError):  # another layout of results than this command's own
        return 0
    if not said_now:
        if arguments.action == "query":
            from .collection.query import told
        else:
            from .attribution.find import told
        print(f"Nothing has changed since it was asked.\n{told(rows)}", file=sys.stderr)
    page = path.with_suffix(".html")
    if page.is_file():
        print(f"The page to open: {page.resolve()}", file=sys.stderr)
    return int(all(row["status"] == "refused" for row in rows))


def _study_of(made: Sequence[str]) -> str:
    """The name of the study that a command makes, as its configurations and --config say."""
    _, said = _joined(made)
    files = [workflow() / "config.yaml", *map(Path, said["configfile"])]
    named = [read_yaml(file.read_text()) for file in files]
    stated_ = (word.partition("=") for word in said["config"])
    named += [{key: read_yaml(value)} for key, _, value in stated_ if key == "study"]
    return str([each["study"] for each in named if "study" in each][-1])


def _run(made: Sequence[str]) -> int:
    # On a CPU two spinning thread pools on two cores are slower than one.
    environment = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ
    # Whoever ends this command means Snakemake, which then ends its jobs; also who does so before that is there.
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    snakemake = subprocess.Popen([sys.executable, "-m", *made], env=environment)
    signal.signal(signal.SIGTERM, lambda *_: snakemake.terminate())
    if told:
        snakemake.terminate()
    while True:
        # Ctrl-C reaches Snakemake as well, which ends its jobs and gives up its lock; it is not killed over it.
        with contextlib.suppress(KeyboardInterrupt):
            return snakemake.wait()


if __name__ == "__main__":
    sys.exit(main())
