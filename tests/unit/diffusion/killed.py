"""Train the same LoRAs once in peace and once under fire: children of this process are killed by SIGKILL.

`python killed.py BASE FOLDER KILLS` prints a JSON object. A program of its own, since each child is forked from a
process that has imported everything and has no other threads.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pyarrow as pa
import torch

from lora_atlas import tables
from lora_atlas.diffusion import state
from lora_atlas.diffusion.train import Resources, train
from lora_atlas.sections import Base, Training

STEPS = 40
LORAS = ["ada/00", "ada/01", "ada/02"]


def work(base: str, folder: Path, recipe: dict, plan: pa.Table, pictures: pa.Table) -> None:
    train(
        plan,
        pictures,
        Base(base),
        Training(**recipe) | {"steps": STEPS},
        seed=7,
        resources=Resources("cpu", loras_per_pack=2, checkpoint_every=3),
        outputs={lora: folder / f"{lora[-2:]}.safetensors" for lora in LORAS},
        logs={"ada": folder / "log.parquet"},
        folder=folder / "state",
    )


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def mid_save(share: float) -> None:
    """The next state is written to this share, and then the process is dead."""
    through = torch.save

    def cut(kept, stream):
        through(kept, stream)
        stream.file.truncate(int(share * stream.file.tell()))
        die()

    torch.save = cut


def before_the_rename() -> None:
    Path.replace = lambda *_: die()


def child(body) -> int:
    """The exit status of `body` in a process of its own, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            body()
            status = 0
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(base: str, folder: Path, kills: int) -> None:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    recipe = json.loads((folder / "recipe.json").read_text())
    plan = tables.read(folder / "plan.parquet", "plan")
    pictures = tables.read(folder / "pictures.parquet", "pictures")

    def calm() -> None:
        work(base, folder / "calm", recipe, plan, pictures)

    def fire() -> None:
        work(base, folder / "fire", recipe, plan, pictures)

    start = time.monotonic()
    assert child(calm) == 0
    whole = time.monotonic() - start
    rng, kinds, saved, equal, left = random.Random(0), [], [], [], []

    def compare() -> None:
        files = [{p.name: p.read_bytes() for p in (folder / run).glob("*.safetensors")} for run in ("calm", "fire")]
        equal.append(len(files[0]) == len(LORAS) and files[0] == files[1])
        left.extend(str(p) for p in (folder / "fire").rglob("*") if "state" in p.parts or "part" in p.name)
        shutil.rmtree(folder / "fire")

    while len(kinds) < kills:
        kind = ("random", "mid-save", "before the rename")[len(kinds) % 3]

        moment, share = rng.random(), rng.random()

        def struck(kind=kind, moment=moment, share=share) -> None:
            if kind == "random":  # anywhere in the first half of a run, loading and encoding included
                signal.signal(signal.SIGALRM, lambda *_: die())
                signal.setitimer(signal.ITIMER_REAL, 0.02 + moment * whole)
            else:
                # After a few whole saves, so that the job gets on.
                through, left = state.save, [int(3 * moment)]

                def save(file, kept):
                    if left[0] == 0:
                        mid_save(share) if kind == "mid-save" else before_the_rename()
                    left[0] -= 1
                    through(file, kept)

                state.save = save
            fire()

        status = child(struck)
        if status == 0:  # it got to its end before it was struck; the next begins again
            compare()
        else:
            kinds.append((kind, status))
            saved.append(sorted(path.name for path in (folder / "fire" / "state").glob("pack-*.pt")))
    assert child(fire) == 0
    compare()
    print(json.dumps({"kinds": kinds, "saved": saved, "equal": equal, "left": left}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
