"""Transformers of rectified flow, tiny models of the real classes: each trains, is told apart, and gives stock
diffusers equal outputs."""

import io

import flows
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from lora_atlas import tables
from lora_atlas.diffusion import base as bases
from lora_atlas.diffusion import stacked
from lora_atlas.diffusion.attribution import Question, gradients, samples
from lora_atlas.diffusion.base import load
from lora_atlas.diffusion.denoisers import denoiser_of
from lora_atlas.diffusion.errors import TrainingError
from lora_atlas.diffusion.generate import generate, initial_noise
from lora_atlas.diffusion.objectives import objective_of
from lora_atlas.diffusion.sensitivity import measure
from lora_atlas.loras.factors import Update
from lora_atlas.loras.families import belonging
from lora_atlas.loras.files import read_lora, write_lora
from lora_atlas.sections import Base, Probe
from lora_atlas.settings import Setting

KINDS = list(flows.KINDS)
FAMILIES = {"sd3": "SD3", "flux": "FLUX", "flux2": "FLUX.2", "klein": "FLUX.2", "qwen": "Qwen-Image", "z": "Z-Image"}
PROMPTS = ("a painting of a landscape", "a portrait")
SIDE = (32, 32)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*FluxPosEmbed:FutureWarning"),  # of diffusers, on a class of its own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def opened(base_of):
    """Kind → its pipeline, loaded once; whoever changes it changes it back."""
    found = {}

    def _opened(kind: str):
        if kind not in found:
            found[kind] = load(Base(base_of(kind)), device="cpu")
        return found[kind]

    return _opened


def _guess(denoiser, text, shape=(16, 16)) -> torch.Tensor:
    torch.manual_seed(5)
    x = torch.randn(2, denoiser.channels, *denoiser.latent_shape(32)[1:])
    return denoiser.predict(x, torch.tensor([300.0, 900.0]), text.first(2))


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_file_gives_stock_diffusers_the_outputs_it_had_in_training(
    tmp_path, base_of, opened, material, make, kind
):
    pipeline = opened(kind)
    denoiser = denoiser_of(pipeline)
    every = list(denoiser.targets)
    made = make(tmp_path, base_of(kind), material, ["ada/00", "ada/01"], targets=every, steps=60, learning_rate=1e-2)
    log = tables.read(tmp_path / "log.parquet", "training_log").to_pylist()
    first, last = ([row["loss"] for row in log if row["step"] == step] for step in (10, 60))
    assert np.mean(last) < np.mean(first)
    path = made["ada/01"]
    found = read_lora(path)
    assert sorted(name.removeprefix("transformer.") for name in found.updates) == denoiser.layers(every)
    shapes = {name: (u.B.shape[0], u.A.shape[1]) for name, u in found.updates.items()}
    few = {f"transformer.{name}" for name in denoiser.layers(["attention", "feed_forward"])}
    for named in (shapes, {name: shape for name, shape in shapes.items() if name in few}):
        assert belonging(named, found.metadata).family == FAMILIES[kind]
    assert all(u.B.any() for u in found.updates.values())  # every layer that is trained is reached

    text = denoiser.encode_text(pipeline, PROMPTS[:1], SIDE)
    with torch.no_grad():
        plain = _guess(denoiser, text)
        layers = stacked.stack(denoiser.module, denoiser.layers(every), 1, 2, 1.0)
        factors = {
            n.removeprefix("transformer."): (torch.from_numpy(u.A), torch.from_numpy(u.B))
            for n, u in found.updates.items()
        }
        stacked.put(layers, 0, factors)
        ours = _guess(denoiser, text)
        stacked.unstack(denoiser.module, layers)
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
        loaded = {n.split(".lora_A.")[0] for n, _ in denoiser.module.named_modules() if ".lora_A." in n}
        stock = _guess(denoiser, text)
        pipeline.unload_lora_weights()
    assert loaded == set(denoiser.layers(every))
    assert (stock - plain).abs().max() > 1e-2
    torch.testing.assert_close(ours, stock, atol=1e-5, rtol=1e-4)


def _stock(kind: str, prompt: str, guidance: float) -> dict:
    """How one calls the stock pipeline with a prompt; noise, steps and size aside."""
    if kind == "sd3":
        return {"prompt": prompt, "guidance_scale": guidance, "max_sequence_length": 16}
    if kind == "qwen":
        return {"prompt": prompt, "true_cfg_scale": guidance, "negative_prompt": "" if guidance > 1 else None}
    if kind == "z":  # what is added: 1 is 2 of others
        return {"prompt": prompt, "guidance_scale": guidance - 1}
    return {"prompt": prompt, "guidance_scale": guidance}


@pytest.mark.parametrize("guidance", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_it_paints_what_stock_diffusers_paints(tmp_path, base_of, opened, kind, guidance):
    """Two LoRAs at once, each with both prompts, from embeddings that were made once: one step of 255 at the most."""
    pipeline, rng, paths = opened(kind), np.random.default_rng(3), {}
    denoiser = denoiser_of(pipeline)
    for number in range(2):
        updates = {}
        for name in denoiser.layers(["attention", "feed_forward", "modulation"]):
            out, width = denoiser.module.get_submodule(name).weight.shape
            A, B = (rng.normal(0, 0.3, shape).astype(np.float32) for shape in ((2, width), (out, 2)))
            updates[f"transformer.{name}"] = Update(f"transformer.{name}", A, B)
        paths[f"ada/0{number}"] = tmp_path / f"0{number}.safetensors"
        write_lora(paths[f"ada/0{number}"], updates, {})
    out = tmp_path / "painted.parquet"
    wanted = [Setting(3, guidance, PROMPTS, (0,))]
    generate(
        paths, Base(base_of(kind)), wanted, batch=4, resolution=32, seed=5, device="cpu",
        outputs={wanted[0].name: out},
    )  # fmt: skip
    rows = tables.read(out, "generated").to_pylist()
    assert len(rows) == 4
    seen = []
    for lora, path in paths.items():
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
        for row in (r for r in rows if r["lora"] == lora):
            noise = initial_noise(denoiser.latent_shape(32), 5, row["prompt"], row["seed"])[None]
            image = pipeline(
                **_stock(kind, row["prompt"], guidance),
                num_inference_steps=3,
                height=32,
                width=32,
                latents=denoiser.packed(noise),
                output_type="np",
            ).images[0]
            ours = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))).astype(int)
            assert np.abs((image * 255).round().astype(int) - ours).max() <= 1
            seen.append(ours)
        pipeline.unload_lora_weights()
    assert all(np.abs(one - other).max() > 3 for i, one in enumerate(seen) for other in seen[:i])


@pytest.mark.parametrize("kind", KINDS)
def test_latents_are_decoded_as_they_were_encoded(opened, kind):
    pipeline = opened(kind)
    x = torch.rand(2, 3, *SIDE) * 2 - 1
    latents = bases.encode_pictures(pipeline, x)
    assert latents.shape[1:] == denoiser_of(pipeline).latent_shape(32)
    deep = x[:, :, None] if kind == "qwen" else x
    with torch.no_grad():
        straight = pipeline.vae.decode(pipeline.vae.encode(deep).latent_dist.mode()).sample.reshape(x.shape)
    expected = ((straight / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1)
    assert (bases.decode_latents(pipeline, latents).float() - expected).abs().max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_nothing_reads_are_no_targets_and_all_others_are_reached(opened, kind):
    pipeline = opened(kind)
    denoiser = denoiser_of(pipeline)
    every = stacked.targeted(denoiser.module, list(denoiser.targets), denoiser.targets)
    weights = {name: denoiser.module.get_submodule(name).weight for name in every}
    for weight in weights.values():
        weight.requires_grad_(True)
    _guess(denoiser, denoiser.encode_text(pipeline, PROMPTS[:1], SIDE)).square().sum().backward()
    silent = {name for name, w in weights.items() if w.grad is None or not w.grad.any()}
    for weight in weights.values():
        weight.requires_grad_(False)
        weight.grad = None
    assert silent == denoiser.idle
    assert set(denoiser.layers(list(denoiser.targets))) == set(every) - denoiser.idle


@pytest.mark.parametrize("kind", KINDS)
def test_module_weights_and_gradients_are_those_of_its_own_loss(opened, kind):
    pipeline = opened(kind)
    denoiser = denoiser_of(pipeline)
    probe = Probe(samples=3, num_inference_steps=2, batch=2, seed=0, prompts=PROMPTS)
    targets = ["attention", "feed_forward"]
    names = denoiser.layers(targets)
    found = measure(pipeline, targets, probe, resolution=32, moments=True)
    assert sorted(found.weights) == [f"transformer.{name}" for name in names]
    assert all(value > 0 for value in found.weights.values())

    objective = objective_of(pipeline.scheduler, "cpu", density=denoiser.density, shift=denoiser.shift)
    text = denoiser.encode_text(pipeline, PROMPTS[:1], SIDE)
    asked = samples(3, denoiser.latent_shape(32), 0)
    latents = torch.randn(1, *denoiser.latent_shape(32))
    held, losses = gradients(Question(denoiser, objective, text, asked, 2), latents, names)
    weights = [denoiser.module.get_submodule(name).weight.requires_grad_(True) for name in names]
    t = objective.times(asked.u, denoiser.tokens(latents.shape[2:]))
    x = latents.expand(3, -1, -1, -1)
    guess = denoiser.predict(objective.noisy(x, asked.epsilon, t), t, text.first(3))
    loss = (guess - objective.value(x, asked.epsilon, t)).square().mean()
    for name, weight, gradient in zip(names, weights, torch.autograd.grad(loss, weights), strict=True):
        torch.testing.assert_close(held[name][0], gradient, atol=1e-5, rtol=1e-3)
        weight.requires_grad_(False)
    assert losses[0] == pytest.approx(float(loss.detach()), rel=1e-4)


@pytest.mark.parametrize("kind", ["flux", "flux2", "qwen", "z"])
def test_an_adapter_is_the_same_alone_and_in_company_and_goes_on_where_it_was_killed(
    tmp_path, base_of, material, make, monkeypatch, kind
):
    """As test_train and test_resume hold of SD3's class, to a share of the way to a LoRA of other pictures."""
    from lora_atlas.diffusion import state
    from lora_atlas.diffusion.train import Resources

    def vector(path):
        with safe_open(path, "pt") as file:
            return torch.cat([file.get_tensor(key).flatten() for key in sorted(file.keys())])

    alone = make(tmp_path / "alone", base_of(kind), material, ["ada/01"])
    company = make(tmp_path / "pack", base_of(kind), material, ["ada/00", "ada/01"])
    one, same, other = (vector(path) for path in (alone["ada/01"], company["ada/01"], company["ada/00"]))
    assert (one - same).norm() < 1e-4 * (one - other).norm()
    saved = state.save

    def die_after_saving(file, kept):
        saved(file, kept)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(state, "save", die_after_saving)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "cut", base_of(kind), material, ["ada/01"], resources=Resources("cpu", checkpoint_every=5))
    resumed = make(tmp_path / "cut", base_of(kind), material, ["ada/01"])
    assert resumed["ada/01"].read_bytes() == alone["ada/01"].read_bytes()


def test_prompts_of_unequal_length_are_masked_where_they_are_joined(opened):
    """Each is what it is by itself."""
    pipeline = opened("qwen")
    denoiser = denoiser_of(pipeline)
    short, long = (denoiser.encode_text(pipeline, [prompt], SIDE) for prompt in ("a", "a landscape of a portrait"))
    both = short.join(long)
    assert both.tensors["mask"].sum(1).tolist() == [len(short.embeds()[0]), len(long.embeds()[0])]
    with torch.no_grad():
        for i, alone in enumerate((short, long)):
            x = torch.randn(1, *denoiser.latent_shape(32))
            t = torch.tensor([500.0])
            together = denoiser.predict(x.repeat(2, 1, 1, 1), t, both)[i]
            torch.testing.assert_close(together, denoiser.predict(x, t, alone)[0], atol=1e-5, rtol=1e-4)


def test_min_snr_of_a_flow_is_refused(tmp_path, base_of, material, make):
    with pytest.raises(TrainingError, match=r"training\.loss: min_snr .* rectified flow.*epsilon"):
        make(tmp_path, base_of("sd3"), material, ["ada/00"], loss="min_snr")
