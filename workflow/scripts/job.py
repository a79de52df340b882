"""What every adapter does around its one call of the library: threads, log, errors, the job's cost, and what is there
already.

A rule whose params have `asked` (rules/common.smk) is done once: what its job makes is kept under the key of all that
it depends on (lora_atlas/keys.py, store.py), and a job whose key is there puts it in its place, says so, and ends
before the adapter's body, and with it any numeric library, is begun.
"""

import builtins
import contextlib
import gc
import json
import os
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# The library lies beside the scripts, in whatever environment a job runs; or where pip has put both beside each other.
if (Path(__file__).parents[1] / "lora_atlas").is_dir():
    sys.path.insert(0, str(Path(__file__).parents[1]))
else:
    sys.path.append(str(Path(__file__).parents[3]))

LIBRARY = 100  # modules that an import brings, at least, if what they hold is worth setting aside
BEGAN = "LORA_ATLAS_BEGAN"  # when, set by the Snakefile
AFRESH = "LORA_ATLAS_AFRESH"  # rules and files that the command line forces, or "all"; set by the Snakefile


def asked(snakemake: Any) -> SimpleNamespace:
    """The settings that the rule hands over."""
    return SimpleNamespace(**json.loads(snakemake.params.asked)["settings"])


def at_once(snakemake: Any) -> dict[str, int]:
    """How much of section attribution is asked at once, which is no part of a result and so of no key."""
    return {name: snakemake.config["attribution"][name] for name in ("batch", "memory_mb")}


@contextlib.contextmanager
def job(snakemake: Any, *, parts: Collection[str] | None = None) -> Iterator[SimpleNamespace]:
    """Run the body with the rule's threads and with its output in the rule's log.

    The body imports what it needs: numeric libraries read the thread count when they are first imported. Where the
    rule has an output `cost`, the body sets ``count`` (and ``device``, and ``seconds`` where the work was done before)
    of the yielded object, and the seconds are written there; its ``say`` puts text on the terminal. An error ends the
    job with one sentence there; the log has the rest.

    With `parts` the body itself asks for what is there, part by part: ``kept`` (Parts) of the yielded object. `parts`
    names the settings that each part states for itself, as far as they are its own; count, seconds and device are
    then those of all parts, measured now or before.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(snakemake.threads)
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # spinning threads of one job starve the next
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    terminal = os.dup(2)
    log = Path(snakemake.log[0])
    log.parent.mkdir(parents=True, exist_ok=True)
    kept = Parts(snakemake, parts or ()) if "asked" in snakemake.params.keys() else None  # noqa: SIM118 - a list with names
    whole = parts is None
    with log.open("a" if kept else "w") as stream, _uncollected_imports():
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        measured = SimpleNamespace(
            count=1,
            device="cpu",
            seconds=None,
            kept=kept,
            say=lambda text: os.write(terminal, f"\n{text}\n\n".encode()),
        )
        start = time.perf_counter()
        _tell_progress(snakemake, terminal)
        _end_with_the_driver(terminal)
        try:
            if kept and whole and kept.restore(kept.inputs(), _named(snakemake)):
                kept.record()
                said = "made before, and nothing that it depends on has changed since: nothing to do"
                os.write(terminal, f"{snakemake.rule}: {said}\n".encode())
                _say_remarks(kept, terminal)
                sys.exit(0)
            stream.truncate(0)
            _clear(snakemake)
            yield measured
            if kept and kept.told:
                measured.seconds = sum(each["seconds"] for each in kept.told)
                measured.count = sum(each["count"] for each in kept.told)
                measured.device = ", ".join(sorted({each["device"] for each in kept.told}))
                os.write(terminal, f"{snakemake.rule}: {kept}\n".encode())
            if "cost" in snakemake.output.keys():  # noqa: SIM118
                _write_cost(snakemake, measured, measured.seconds or time.perf_counter() - start)
            if kept:
                if whole:
                    kept.keep(kept.inputs(), _named(snakemake), {"device": measured.device})
                kept.record()
                _say_remarks(kept, terminal)
        except Exception as error:  # noqa: BLE001 - the last place that can say it well
            traceback.print_exc()
            # The library's own errors are sentences for the reader; others need their type.
            from lora_atlas import machine

            ours = type(error).__module__.startswith("lora_atlas")
            text = str(error) if ours else f"{type(error).__name__}: {error}"
            places = [*snakemake.output, snakemake.config["cache"], tempfile.gettempdir()]
            text = machine.told(error, places) or text
            text += "".join(f"\n{said}" for said in _inputs_changed(snakemake))
            os.write(terminal, f"\n{snakemake.rule}: {text}\nlog: {log}\n\n".encode())
            sys.exit(1)


def began() -> float:
    """When the run began that this job is of, in seconds of the epoch; 0 where nobody has said so."""
    return float(os.environ.get(BEGAN) or 0)


def forced(snakemake: Any) -> bool:
    """Whether the command line forces this job: nothing that is kept then takes its place."""
    named = os.environ.get(AFRESH, "").split("\n")
    return not {"all", snakemake.rule, *(os.path.normpath(str(path)) for path in snakemake.output)}.isdisjoint(named)


class Parts:
    """What a job makes, as a whole or part by part, and what of it is kept from before."""

    def __init__(self, snakemake: Any, own: Collection[str] = ()):
        from lora_atlas.keys import DIGESTS
        from lora_atlas.store import Store

        self._job, self._digests = snakemake, DIGESTS
        said = json.loads(snakemake.params.asked)
        said["settings"] = {name: value for name, value in said["settings"].items() if name not in own}
        self._said = said
        self.told: list[dict[str, Any]] = []  # of each part: seconds, count, device
        self.restored = 0
        self.store = Store(snakemake.config["cache"])
        self.afresh = forced(snakemake)

    def inputs(self) -> dict[str, Any]:
        """Ingredients of the whole job: the content of all inputs, under the names that the study has for them."""
        named = self._job.input.items()
        listed = {name: [given] if isinstance(given, str) else list(given) for name, given in named}
        rest = [path for path in self._job.input if not any(path in paths for paths in listed.values())]
        return {
            name: [[self._name(path), self.content(path)] for path in paths]
            for name, paths in {**listed, "": rest}.items()
        }

    def content(self, path: str | Path) -> str:
        """Digest of a file's or folder's content."""
        return self._digests.content(path)

    def ingredients(self, part: Any) -> dict[str, Any]:
        """All that a part depends on: what the rule asks, and what the part is made of."""
        return {**self._said, "of": part}

    def restore(self, part: Any, files: Mapping[str, str | Path]) -> dict[str, Any] | None:
        """Put a part's files (name → path) where they belong and return what was told of it; None: it is to be made."""
        from lora_atlas.store import place

        found = None if self.afresh else self.store.find(self.ingredients(part))
        if found is None or set(found.files) != set(files):
            return None
        for name, path in files.items():
            place(found.files[name], path)
        if "seconds" in found.told:
            self.told.append(found.told)
            self.restored += 1
        return found.told

    def keep(self, part: Any, files: Mapping[str, str | Path], told: Mapping[str, Any] = {}) -> None:
        """Keep a part's files (name → path) under its key."""
        self.store.put(self.ingredients(part), files, told)
        if "seconds" in told:
            self.told.append(dict(told))

    def __str__(self) -> str:
        if self.restored == len(self.told):
            return "made before, and nothing that it depends on has changed since: nothing to do"
        others = "; the others were made before" if self.restored else ""
        return f"made {len(self.told) - self.restored} of {len(self.told)} parts{others}"

    def record(self) -> None:
        """Write down what the job's outputs hold, so that a file that is changed afterwards is found (common.smk)."""
        from lora_atlas.atomic import replacing
        from lora_atlas.keys import key

        files = [path for path in map(str, self._job.output) if Path(path).is_file()]
        found = {"outputs": {path: self._digests.file(path) for path in files}, "used": self.store.used}
        found["at"] = time.time_ns()
        name = f"{self._job.rule}-{key({'': files})[:16]}.json"
        # Where all readers look, also for a module whose results lie below a folder of another workflow.
        with replacing(Path("results", self._job.config["study"], ".made", name)) as temporary:
            temporary.write_text(json.dumps(found, indent=1))

    def _name(self, path: str) -> str:
        """A file's name within its study, whatever that is called: two studies are to share what they make alike."""
        config = self._job.config
        for study in (config["study"], config["shared"].get("study")):
            # As a module of another workflow, results lie below a folder of that one.
            _, found, name = path.partition(f"results/{study}/") if study else ("", "", "")
            if found:
                return name
        return Path(path).name


def _clear(snakemake: Any) -> None:
    """Remove what a job that was killed left beside the outputs. Nobody else writes them while this job runs."""
    from lora_atlas.atomic import clear

    for path in map(str, snakemake.output):
        clear(path)


def _tell_progress(snakemake: Any, terminal: int) -> None:
    """A line now and then; on a terminal, where it scrolls away, more often than into a log that is kept."""
    from lora_atlas import progress

    named = " ".join([snakemake.rule, *map(str, snakemake.wildcards)])

    def say(text: str) -> None:
        os.write(terminal, f"{named}: {text}{_of_study(snakemake)}; log: {snakemake.log[0]}\n".encode())

    progress.to(say, 15 if os.isatty(terminal) else 60)


@contextlib.contextmanager
def _uncollected_imports() -> Iterator[None]:
    """Python's collector sleeps while a library is imported, and never looks at what it brought.

    torch and diffusers make half a million objects, and all of them stay. Looking through them again and again, and
    once more when the process ends, was a third of a job's start (benchmarks/RESULTS.md).
    """
    plain = builtins.__import__

    def importing(*given: Any, **named: Any) -> Any:
        if not gc.isenabled():  # within another import
            return plain(*given, **named)
        there = len(sys.modules)
        gc.disable()
        try:
            return plain(*given, **named)
        finally:
            if len(sys.modules) > there + LIBRARY:
                gc.freeze()
            gc.enable()

    builtins.__import__ = importing
    try:
        yield
    finally:
        builtins.__import__ = plain


def _end_with_the_driver(terminal: int) -> None:
    """Snakemake that is killed (SIGKILL, out of memory) leaves its jobs running, beside those of the next run.

    So a job ends with the process that started it. It may end at any moment: what it writes is renamed when it is
    whole, and training goes on from its last state. Linux alone tells of another's end; elsewhere jobs run out.
    """
    if Path(sys.argv[0]).parent.parts[-2:] != (".snakemake", "scripts") or not hasattr(os, "pidfd_open"):
        return
    try:
        driver = os.pidfd_open(_starter())
    except OSError:
        return

    def watch() -> None:
        select.select([driver], [], [])  # readable when that process has ended
        with contextlib.suppress(OSError):  # a terminal that is gone, too
            os.write(terminal, b"Snakemake was killed: its job ends with it, and goes on when the same is run again\n")
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="driver").start()


def _starter() -> int:
    """The nearest ancestor that is no shell; raises OSError where there is no /proc, or no such ancestor."""
    process = os.getppid()
    while process:
        name, _, rest = Path(f"/proc/{process}/stat").read_text().rpartition(")")
        if name.partition("(")[2] not in ("sh", "bash", "dash"):
            return process
        process = int(rest.split()[1])
    raise ProcessLookupError


def _inputs_changed(snakemake: Any) -> list[str]:
    """Inputs that hold other bytes than their jobs made, each with what makes it again. Asked when a job has failed:
    before one, Snakemake itself looks (rules/common.smk)."""
    try:
        from lora_atlas.store import changed

        config = snakemake.config
        shared = (config.get("shared") or {}).get("study")
        studies = [Path("results", name) for name in (config["study"], shared) if name]
        found = {file: rule for study in studies for file, rule in changed(study).items()}
        inputs = sorted({path for path in map(str, snakemake.input) if path in found})
    except Exception:  # noqa: BLE001 - what the job itself said comes first
        return []
    return [
        f"{path}: not the bytes that {found[path]} made; run the same again, which makes it anew, or "
        f"snakemake --forcerun {path}"
        for path in inputs
    ]


def _of_study(snakemake: Any) -> str:
    """How many LoRAs of the study are there, where they are trained."""
    from lora_atlas import progress

    total = progress.expected(snakemake.config["study"])
    if not snakemake.rule.endswith("train_loras") or total is None:
        return ""
    there = sum(1 for _ in Path("results", snakemake.config["study"], "loras").glob("*/*.safetensors"))
    return f"; {there} of {total} LoRAs of {snakemake.config['study']} are there"


def _named(snakemake: Any) -> dict[str, str]:
    return {f"{number:04d}{Path(path).suffix}": path for number, path in enumerate(snakemake.output)}


def _say_remarks(kept: Parts, terminal: int) -> None:
    for remark in kept.store.remarks:
        os.write(terminal, f"{kept.store.root}: {remark}\n".encode())


def _write_cost(snakemake: Any, measured: SimpleNamespace, seconds: float) -> None:
    from lora_atlas import tables

    path = Path(snakemake.output.cost)
    row = {"stage": path.parent.name, "item": path.stem, "seconds": seconds}
    tables.write(path, "cost", [row | {"count": measured.count, "device": measured.device}])
