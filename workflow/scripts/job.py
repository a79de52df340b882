"""What every adapter does around its one call of the library: threads, log, errors, and the job's cost."""

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# The library lies beside the scripts, in whatever environment a job runs; or where pip has put both beside each other.
if (Path(__file__).parents[1] / "lora_atlas").is_dir():
    sys.path.insert(0, str(Path(__file__).parents[1]))
else:
    sys.path.append(str(Path(__file__).parents[3]))


@contextlib.contextmanager
def job(snakemake: Any) -> Iterator[SimpleNamespace]:
    """Run the body with the rule's threads and with its output in the rule's log.

    The body imports what it needs: numeric libraries read the thread count when they are first imported. Where the
    rule has an output `cost`, the body sets ``count`` (and ``device``, and ``seconds`` where the work was done before)
    of the yielded object, and the seconds are written there; its ``say`` puts text on the terminal. An error ends the
    job with one sentence there; the log has the rest.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(snakemake.threads)
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # spinning threads of one job starve the next
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    terminal = os.dup(2)
    log = Path(snakemake.log[0])
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as stream:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        measured = SimpleNamespace(
            count=1, device="cpu", seconds=None, say=lambda text: os.write(terminal, f"\n{text}\n\n".encode())
        )
        start = time.perf_counter()
        try:
            yield measured
            if "cost" in snakemake.output.keys():  # noqa: SIM118 - a list with names
                _write_cost(snakemake, measured, measured.seconds or time.perf_counter() - start)
        except Exception as error:  # noqa: BLE001 - the last place that can say it well
            traceback.print_exc()
            # The library's own errors are sentences for the reader; others need their type.
            ours = type(error).__module__.startswith("lora_atlas")
            text = str(error) if ours else f"{type(error).__name__}: {error} (traceback in {log})"
            os.write(terminal, f"\n{snakemake.rule}: {text}\n\n".encode())
            sys.exit(1)


def _write_cost(snakemake: Any, measured: SimpleNamespace, seconds: float) -> None:
    from lora_atlas import tables

    path = Path(snakemake.output.cost)
    row = {"stage": path.parent.name, "item": path.stem, "seconds": seconds}
    tables.write(path, "cost", [row | {"count": measured.count, "device": measured.device}])
