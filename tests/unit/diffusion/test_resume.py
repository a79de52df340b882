"""A job that is killed, stopped or given another's state: it goes on to the very same bytes, or says why not."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lora_atlas import tables
from lora_atlas.diffusion import pack, state
from lora_atlas.diffusion.errors import TrainingError
from lora_atlas.diffusion.pack import TimeBudgetSpent
from lora_atlas.diffusion.train import Resources

KILLS = {"sd": 21, "sd3": 9}  # of either architecture; what is killed and saved is one code
TWO = ["ada/00", "ada/01"]


@pytest.mark.fault(
    "training",
    "SIGKILL at 30 moments: at random, in the middle of a save, between a save and its rename",
    "goes on each time; the LoRAs have the bytes of an undisturbed run",
)
@pytest.mark.slow
def test_a_job_killed_at_random_moments_ends_in_the_same_bytes(tmp_path, request, any_base, material, recipe):
    """SIGKILL many times: at random moments, in the middle of a save, and between a save and its rename."""
    plan, pictures = material
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    tables.write(tmp_path / "plan.parquet", "plan", plan)
    tables.write(tmp_path / "pictures.parquet", "pictures", pictures)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3] / "workflow")}
    script = Path(__file__).with_name("killed.py")
    kills = KILLS[request.node.callspec.params["any_base"]]
    done = subprocess.run(
        [sys.executable, script, any_base, tmp_path, str(kills)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    killed = [kind for kind, status in found["kinds"] if status == -signal.SIGKILL]
    assert len(killed) == kills
    assert {"random", "mid-save", "before the rename"} == set(killed)
    assert any(found["saved"])  # it did get on between the kills
    assert all(found["equal"])
    assert found["left"] == []


@pytest.fixture
def interrupted(tmp_path, any_base, material, make, monkeypatch):
    """A folder whose job died after its second save."""

    def interrupt(name="x", **changes):
        saved, left = state.save, [2]

        def die_after_saving(file, kept):
            saved(file, kept)
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(state, "save", die_after_saving)
            with pytest.raises(KeyboardInterrupt):
                make(
                    tmp_path / name, any_base, material, TWO, resources=Resources("cpu", checkpoint_every=5), **changes
                )
        return tmp_path / name

    return interrupt


@pytest.mark.fault(
    "training", "a job ends after a checkpoint", "goes on from it; LoRAs and log are those of a whole run"
)
def test_a_job_goes_on_from_its_state_and_keeps_its_log(tmp_path, any_base, material, make, interrupted, capsys):
    whole = make(tmp_path / "whole", any_base, material, TWO, steps=25)
    folder = interrupted(steps=25)
    resumed = make(folder, any_base, material, TWO, steps=25)
    assert "going on from step 10" in capsys.readouterr().out
    assert all(whole[lora].read_bytes() == resumed[lora].read_bytes() for lora in TWO)
    one, two = (
        tables.read(f / "log.parquet", "training_log").drop_columns("seconds") for f in (tmp_path / "whole", folder)
    )
    assert one.equals(two)
    assert sorted(set(one["step"].to_pylist())) == [10, 20, 25]
    assert not (folder / "state").exists()


@pytest.mark.fault(
    "training",
    "the walltime is nearly over, and no signal says so",
    "stops after a step with its state; the retry goes on to the same bytes",
)
def test_a_spent_time_budget_stops_cleanly_and_a_retry_goes_on(tmp_path, any_base, material, make):
    whole = make(tmp_path / "whole", any_base, material, TWO)
    stops = []
    for _ in range(20):
        try:
            made = make(tmp_path / "slow", any_base, material, TWO, resources=Resources("cpu", time_budget=0))
            break
        except TimeBudgetSpent as error:
            stops.append(str(error))
            assert not list((tmp_path / "slow").glob("*.safetensors"))
    assert len(stops) == 11  # a step each, and the twelfth is the last
    assert "the time budget is spent at step 3 of 12" in stops[2]
    assert str(tmp_path / "slow" / "state") in stops[2]
    assert all(whole[lora].read_bytes() == made[lora].read_bytes() for lora in TWO)


@pytest.mark.fault(
    "training", "a job that had to halve its batch is stopped", "goes on with the halved batch, to the same bytes"
)
def test_a_halved_batch_is_remembered(tmp_path, any_base, material, make, interrupted, monkeypatch):
    """Else a job that goes on would add its gradients up in another order."""
    through, sizes = pack._batch, []

    def short(step, draws, part, errors):
        sizes.append(len(part.adapters))
        if len(part.adapters) > 1:
            raise torch.OutOfMemoryError("no room")
        through(step, draws, part, errors)

    monkeypatch.setattr(pack, "_batch", short)
    whole = make(tmp_path / "whole", any_base, material, TWO)
    folder = interrupted()
    sizes.clear()
    resumed = make(folder, any_base, material, TWO)
    assert set(sizes) == {1}
    assert all(whole[lora].read_bytes() == resumed[lora].read_bytes() for lora in TWO)


# --- state that is not this work's


@pytest.mark.fault("training", "a state of another recipe lies there", "refused with what differs; the state stays")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rate": 1e-3}, r"recipe\.training\.learning_rate was 0\.002, is 0\.001"),
        ({"seed": 8}, r"recipe\.seed was 7, is 8"),
    ],
)
def test_state_of_another_recipe_is_refused_with_what_differs(any_base, material, make, interrupted, changes, words):
    folder = interrupted()
    before = (folder / "state" / "pack-00.pt").read_bytes()
    with pytest.raises(TrainingError, match=words) as caught:
        make(folder, any_base, material, TWO, **changes)
    assert f"delete the folder {folder / 'state'}" in str(caught.value)
    assert (folder / "state" / "pack-00.pt").read_bytes() == before


@pytest.mark.fault("training", "a state of other pictures, code or base", "refused with what differs")
def test_state_of_other_data_code_or_base_is_refused(
    any_base, tiny_bases, material, make, interrupted, monkeypatch, wide_and_tall
):
    folder = interrupted()
    with pytest.raises(TrainingError, match=r"data\.ada/00 is another; data\.ada/01 is another"):
        make(folder, any_base, wide_and_tall, TWO)
    with pytest.raises(TrainingError, match=r"data\.ada/02 is new"):
        make(folder, any_base, material, [*TWO, "ada/02"])
    with pytest.raises(TrainingError, match=r"recipe\.base was"):
        make(folder, tiny_bases["sd-v"], material, TWO)
    with monkeypatch.context() as patched:
        patched.setattr(state, "code_digest", lambda: "0" * 64)
        with pytest.raises(TrainingError, match="code is another"):
            make(folder, any_base, material, TWO)


@pytest.mark.fault(
    "training",
    "a state that is cut, or whose manifest is damaged or absent",
    "refused by name, never a silent restart; the state stays",
)
def test_damaged_or_unknown_state_is_refused_by_name(any_base, material, make, interrupted):
    folder = interrupted()
    file = folder / "state" / "pack-00.pt"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TrainingError, match=r"pack-00\.pt: damaged"):
        make(folder, any_base, material, TWO)
    file.write_bytes(whole)
    (folder / "state" / "manifest.json").write_text("{")
    with pytest.raises(TrainingError, match=r"manifest\.json: damaged"):
        make(folder, any_base, material, TWO)
    (folder / "state" / "manifest.json").unlink()
    with pytest.raises(TrainingError, match=r"no manifest\.json says of what work"):
        make(folder, any_base, material, TWO)
    assert file.read_bytes() == whole


def test_the_code_digest_knows_the_trainer_and_what_it_imports():
    from lora_atlas import code

    files = {path.name for path in code.closure("diffusion.train")}
    assert {"train.py", "pack.py", "stacked.py", "streams.py", "seeds.py", "files.py", "decode.py"} <= files
    assert state.code_digest() == state.code_digest()


@pytest.mark.fault(
    "training", "SIGKILL while the state of a finished job is removed", "the next run finds whose it is, and goes on"
)
def test_what_a_kill_leaves_of_a_state_is_still_of_its_work(tmp_path, monkeypatch):
    work, folder = {"recipe": 1}, tmp_path / "state"
    state.claim(folder, work)
    state.settle(folder, work, [["ada/00"]])
    (folder / "finished").mkdir()
    for name in ("pack-00.pt", "finished/ada.safetensors"):
        (folder / name).write_bytes(b"bytes")
    through = shutil.rmtree

    def killed(path, **options):
        if Path(path) == folder:
            raise KeyboardInterrupt
        through(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            state.remove(folder)
    assert [path.name for path in folder.iterdir()] == ["manifest.json"]
    assert state.claim(folder, work) == [["ada/00"]]
    state.remove(folder)
    assert not folder.exists()
    state.remove(folder)  # nothing is there any more


@pytest.mark.fault("training", "SIGKILL while a LoRA is written", "the next run removes what was left of it")
def test_what_killed_writes_left_beside_the_loras_is_removed(tmp_path, any_base, material, make):
    (tmp_path / "x").mkdir()
    for name in (".00.safetensors.abc.part", ".log.parquet.abc.part", ".other.abc.part"):
        (tmp_path / "x" / name).write_bytes(b"half")
    made = make(tmp_path / "x", any_base, material, ["ada/00"], steps=1)
    assert made["ada/00"].name == "00.safetensors"
    assert [path.name for path in (tmp_path / "x").rglob("*.part")] == [".other.abc.part"]  # somebody else's
