"""Training on a tiny base: independence, determinism, resuming, the targets' algebra, and files that load elsewhere."""

import hashlib
import io

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from lora_atlas import tables
from lora_atlas.diffusion import train as training_room
from lora_atlas.diffusion.base import BaseModelError, load
from lora_atlas.diffusion.train import Target, TrainingError, draw, train

RECIPE = {
    "resolution": 32,
    "caption": "a painting",
    "rank": 2,
    "alpha": 4,
    "targets": ["attention", "feed_forward"],
    "init": "own",
    "noise": "own",
    "steps": 12,
    "batch": 2,
    "learning_rate": 2e-3,
    "warmup": 2,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "loss": "epsilon",
    "min_snr_gamma": 5.0,
}


@pytest.fixture(scope="module")
def material() -> tuple[pa.Table, pa.Table]:
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(6):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(buffer, "PNG")
        data = buffer.getvalue()
        rows.append(
            {
                "picture": hashlib.sha256(data).hexdigest(),
                "artist": "ada",
                "genre": None,
                "image": {"bytes": data, "path": None},
                "width": 48,
                "height": 40,
                "source": "test",
                "licence": None,
                "status": "kept",
                "reason": None,
            }
        )
    ids = [row["picture"] for row in rows]
    plan = [
        {
            "lora": f"ada/0{n}",
            "artist": "ada",
            "genre": None,
            "split": "gallery",
            "seed": 100 + n,
            "pictures": ids[2 * n : 2 * n + 2],
            "overlap": 0.0,
        }
        for n in range(3)
    ]
    return tables.table("plan", plan), tables.table("pictures", rows)


def _train(folder, base, material, loras, **changes):
    plan, pictures = material
    outputs = {lora: folder / f"{lora[-2:]}.safetensors" for lora in loras}
    train(
        plan,
        pictures,
        {"model": base, "revision": None},
        {**RECIPE, **changes},
        seed=7,
        device="cpu",
        outputs=outputs,
        logs={"ada": folder / "log.parquet"},
        state=folder / "state",
    )
    return outputs


def _vector(path) -> torch.Tensor:
    with safe_open(path, "pt") as file:
        return torch.cat([file.get_tensor(key).flatten() for key in sorted(file.keys())])


def test_an_adapter_is_the_same_alone_in_company_and_in_another_order(tmp_path, tiny_base, material):
    alone = _train(tmp_path / "alone", tiny_base, material, ["ada/01"], steps=120)
    pack = _train(tmp_path / "pack", tiny_base, material, ["ada/00", "ada/01", "ada/02"], steps=120)
    one, same, other = _vector(alone["ada/01"]), _vector(pack["ada/01"]), _vector(pack["ada/00"])
    # Products of another shape round differently; over 120 steps that was 7e-7 of the way to a neighbour.
    assert (one - same).norm() < 1e-4 * (one - other).norm()


def test_the_same_recipe_twice_gives_the_same_bytes(tmp_path, tiny_base, material):
    first = _train(tmp_path / "a", tiny_base, material, ["ada/00", "ada/01"])
    second = _train(tmp_path / "b", tiny_base, material, ["ada/00", "ada/01"])
    assert all(first[lora].read_bytes() == second[lora].read_bytes() for lora in first)
    assert not (tmp_path / "a" / "state").exists()


def test_a_killed_job_goes_on_to_the_same_bytes(tmp_path, tiny_base, material, monkeypatch):
    monkeypatch.setattr(training_room, "CHECKPOINT_EVERY", 5)
    monkeypatch.setattr(training_room, "LOG_EVERY", 5)
    whole = _train(tmp_path / "whole", tiny_base, material, ["ada/00", "ada/01"])

    saved = training_room._checkpoint

    def die_after_saving(state, digest, step, *rest):
        saved(state, digest, step, *rest)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training_room, "_checkpoint", die_after_saving)
        with pytest.raises(KeyboardInterrupt):
            _train(tmp_path / "killed", tiny_base, material, ["ada/00", "ada/01"])
    assert (tmp_path / "killed" / "state" / "state.pt").exists()
    resumed = _train(tmp_path / "killed", tiny_base, material, ["ada/00", "ada/01"])
    assert all(whole[lora].read_bytes() == resumed[lora].read_bytes() for lora in whole)
    log = tables.read(tmp_path / "killed" / "log.parquet", "training_log")
    assert sorted(set(log["step"].to_pylist())) == [5, 10, 12]


def test_state_of_another_recipe_is_not_used(tmp_path, tiny_base, material, monkeypatch, capsys):
    monkeypatch.setattr(training_room, "CHECKPOINT_EVERY", 5)
    monkeypatch.setattr(training_room, "LOG_EVERY", 5)
    saved = training_room._checkpoint

    def die_after_saving(*arguments):
        saved(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training_room, "_checkpoint", die_after_saving)
        with pytest.raises(KeyboardInterrupt):
            _train(tmp_path / "x", tiny_base, material, ["ada/00"])
    other = _train(tmp_path / "x", tiny_base, material, ["ada/00"], learning_rate=1e-3)
    fresh = _train(tmp_path / "y", tiny_base, material, ["ada/00"], learning_rate=1e-3)
    assert "another recipe" in capsys.readouterr().out
    assert other["ada/00"].read_bytes() == fresh["ada/00"].read_bytes()


def test_the_file_loads_in_stock_diffusers_with_every_module(tmp_path, tiny_base, material):
    path = _train(tmp_path, tiny_base, material, ["ada/00"])["ada/00"]
    pipeline = load(tiny_base, None, "cpu")
    plain = {name: m.weight.clone() for name, m in pipeline.unet.named_modules() if isinstance(m, torch.nn.Linear)}
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    pipeline.fuse_lora()
    with safe_open(path, "pt") as file:
        modules = sorted({key.removeprefix("unet.").rsplit(".lora_", 1)[0] for key in file.keys()})  # noqa: SIM118
        updates = {
            m: file.get_tensor(f"unet.{m}.lora_B.weight") @ file.get_tensor(f"unet.{m}.lora_A.weight") for m in modules
        }
    assert modules == sorted(n for n in plain if ".attn" in n or ".ff." in n)
    fused = dict(pipeline.unet.named_modules())
    for name, update in updates.items():
        layer = fused[name]
        weight = getattr(layer, "base_layer", layer).weight
        torch.testing.assert_close(weight - plain[name], update, atol=1e-5, rtol=1e-4)


def test_the_header_names_neither_artist_nor_caption(tmp_path, tiny_base, material):
    shared = _train(tmp_path / "s", tiny_base, material, ["ada/00", "ada/01"], init="shared", steps=1)
    own = _train(tmp_path / "o", tiny_base, material, ["ada/00", "ada/01"], steps=1)

    def header(path):
        with safe_open(path, "np") as file:
            return file.metadata()

    text = str(header(shared["ada/00"]))
    assert "ada" not in text.replace("metadata", "")
    assert "painting" not in text
    assert header(shared["ada/00"])["lora_atlas.initial_A"] == header(shared["ada/01"])["lora_atlas.initial_A"]
    assert header(own["ada/00"])["lora_atlas.initial_A"] != header(own["ada/01"])["lora_atlas.initial_A"]


def test_draws_see_every_picture_equally_often_and_depend_on_nothing_else():
    seen = [p for step in range(12) for p in draw(1, 2, step, [4, 5, 6], 2, (1, 2, 2), 10)[0]]
    assert sorted(seen) == sorted([4, 5, 6] * 8)
    a, b = draw(1, 2, 3, [4, 5], 2, (1, 2, 2), 10), draw(1, 2, 3, [4, 5], 2, (1, 2, 2), 10)
    assert a[0] == b[0]
    assert torch.equal(a[1], b[1])
    shared = draw(1, 9, 3, [4, 5], 2, (1, 2, 2), 10)
    assert torch.equal(a[1], shared[1])  # the noise stream does not depend on the order of pictures


def test_timesteps_are_stratified_and_uniform():
    drawn = torch.stack([draw(1, 2, step, [0], 4, (1, 1, 1), 1000)[2] for step in range(2000)])
    assert torch.equal(drawn // 250, torch.arange(4).expand(2000, -1))
    share = torch.bincount(drawn.flatten() // 100, minlength=10) / drawn.numel()
    torch.testing.assert_close(share, torch.full((10,), 0.1), atol=0.01, rtol=0)


def test_targets_invert_the_forward_process():
    alphas = torch.linspace(0.99, 0.01, 50)
    x, epsilon = torch.randn(8, 2, 3, 3), torch.randn(8, 2, 3, 3)
    t = torch.randint(50, (8,))
    a = alphas[t].view(-1, 1, 1, 1)
    v = Target(alphas, "v_prediction", None)
    noisy, value = v.noisy(x, epsilon, t), v.value(x, epsilon, t)
    torch.testing.assert_close(a.sqrt() * noisy - (1 - a).sqrt() * value, x)
    torch.testing.assert_close((1 - a).sqrt() * noisy + a.sqrt() * value, epsilon)


def test_min_snr_weights():
    alphas = torch.tensor([0.99, 0.5, 0.1])  # SNR 99, 1, 1/9
    t = torch.arange(3)
    torch.testing.assert_close(Target(alphas, "epsilon", 5.0).weight(t), torch.tensor([5 / 99, 1.0, 1.0]))
    torch.testing.assert_close(Target(alphas, "v_prediction", 5.0).weight(t), torch.tensor([0.05, 0.5, 0.1]))


def test_a_picture_that_the_table_lacks_is_named(tmp_path, tiny_base, material):
    plan, pictures = material
    with pytest.raises(TrainingError, match=plan["pictures"][0].as_py()[0]):
        _train(tmp_path, tiny_base, (plan, pictures.slice(2)), ["ada/00"])


def test_a_loss_that_is_not_finite_names_the_lora_and_writes_nothing(tmp_path, tiny_base, material):
    with pytest.raises(TrainingError, match="ada/00"):
        _train(tmp_path, tiny_base, material, ["ada/00"], learning_rate=1e30, warmup=0)
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("model", ["nowhere/at/all", "./absent", "someone/model"])
def test_a_missing_base_says_what_to_put_where(model):
    with pytest.raises(BaseModelError, match=r"base\.model.*model_index\.json"):
        load(model, None, "cpu")
