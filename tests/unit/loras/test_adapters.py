"""Every kind of adapter of docs/formats.md, made and saved by PEFT itself; its own forward pass in float64 is the
truth.

Tolerance: 2·10⁻⁶ of the norm, as factors are float32. What LyCORIS saves is held in test_lycoris.py.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from peft.tuners.supertuning.config import SupertuningConfig
from safetensors.torch import save_file
from torch import nn

from lora_atlas.loras.factors import expanded
from lora_atlas.loras.files import LoraFileError, open_lora, read_lora
from lora_atlas.loras.kinds.catalog import ADAPTERS, EXACTLY, NOT, WITH_BASE

TOLERANCE = 2e-6
Q, K = "attn1.to_q", "attn2.to_k"
PREFIX = "mid_block.attentions.0.transformer_blocks.0"
TARGETS = {"target_modules": ["to_q", "to_k"]}


class Block(nn.Module):
    """Two linear layers of different shapes, under a UNet's names; `alike`: of one shape."""

    def __init__(self, alike: bool = False):
        super().__init__()
        shapes = {Q: (16, 24), K: (16, 24) if alike else (32, 16)}
        self.config = {"model_type": "none"}
        for name, (width, out) in shapes.items():
            at: nn.Module = self
            *above, last = f"{PREFIX}.{name}".split(".")
            for part in above:
                if not hasattr(at, part):
                    at.add_module(part, nn.Module())
                at = getattr(at, part)
            at.add_module(last, nn.Linear(width, out))


def adapter(folder: Path, config, *, alike: bool = False, train: Callable[[str], bool] = lambda name: True):
    """Save an adapter with random parameters to folder/lora and its base to folder/base; module → (ΔW, Δbias)."""
    torch.manual_seed(0)
    base = Block(alike)
    weights = {name: value.detach().clone() for name, value in base.state_dict().items()}
    (folder / "base/unet").mkdir(parents=True)
    save_file(weights, folder / "base/unet/diffusion_pytorch_model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base, config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and train(name):
                    parameter += torch.randn_like(parameter) * 0.3
        model.save_pretrained(folder / "lora")
    model = model.double().eval()
    found = {}
    warnings.simplefilter("ignore")  # in this test: torch's of sparse tensors
    for name in (Q, K):
        layer = model.get_submodule(f"base_model.model.{PREFIX}.{name}")
        with torch.no_grad():
            zero = layer(torch.zeros(1, layer.in_features, dtype=torch.float64))
            W = (layer(torch.eye(layer.in_features, dtype=torch.float64)) - zero).T
            if getattr(config, "alora_invocation_tokens", None):  # it acts after them alone
                W = W + layer.get_delta_weight("default")
        its = f"{PREFIX}.{name}"
        found[f"unet.{its}"] = (
            (W - weights[f"{its}.weight"].double()).numpy(), (zero[0] - weights[f"{its}.bias"].double()).numpy()
        )  # fmt: skip
    return found


def near(found: np.ndarray, expected: np.ndarray, tolerance: float = TOLERANCE) -> None:
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) <= tolerance * max(np.linalg.norm(expected), 1e-3)


def dense(update) -> np.ndarray:
    plain = expanded(update)
    return plain.B.astype(np.float64) @ plain.A.astype(np.float64)


def held(folder: Path, truth, base: bool) -> None:
    """The update of every module is the truth's, and that of every bias."""
    updates = read_lora(folder / "lora", base=str(folder / "base") if base else None).updates
    assert {m for m in updates if not m.endswith(".bias")} == set(truth)
    for module, (W, bias) in truth.items():
        assert np.linalg.norm(W) > 1e-3  # of a trained adapter
        near(dense(updates[module]), W)
        if np.linalg.norm(bias) > 1e-9:
            near(dense(updates[f"{module}.bias"])[:, 0], bias)
        else:
            assert f"{module}.bias" not in updates


def quiet(config, **settings):
    """A configuration, without what PEFT says of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return config(**settings)


# Row of the table → configurations of PEFT that are of it.
READ = {
    "LoRA": [peft.LoraConfig(r=4, lora_alpha=6, **TARGETS)],
    "LoRA, rsLoRA": [peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True, **TARGETS)],
    "LoRA, rank and alpha patterns": [
        peft.LoraConfig(r=4, lora_alpha=6, rank_pattern={"to_q": 2}, alpha_pattern={"attn2.to_k": 1}, **TARGETS)
    ],
    "LoRA, lora_bias": [
        peft.LoraConfig(r=4, lora_alpha=6, lora_bias=True, use_rslora=rs, **TARGETS) for rs in (False, True)
    ],
    "BD-LoRA": [
        peft.LoraConfig(r=4, lora_alpha=6, use_rslora=rs, use_bdlora=peft.tuners.lora.BdLoraConfig(
            target_modules_bd_a=["to_q"], target_modules_bd_b=["to_k"], nblocks=2), **TARGETS) for rs in (False, True)
    ],
    "AdaLoRA": [
        peft.AdaLoraConfig(init_r=6, target_r=4, lora_alpha=alpha, total_step=10, **TARGETS) for alpha in (8, 3)
    ],
    "LoHa": [peft.LoHaConfig(r=2, alpha=5, **TARGETS)],
    "LoKr": [
        peft.LoKrConfig(r=2, alpha=5, decompose_both=both, decompose_factor=factor, **TARGETS)
        for both, factor in ((False, -1), (True, -1), (False, 4))
    ],
    "LoKr, both factors whole": [peft.LoKrConfig(r=32, alpha=5, **TARGETS)],
    "VB-LoRA": [
        peft.VBLoRAConfig(r=2, num_vectors=10, vector_length=4, topk=k, save_only_topk_weights=only, **TARGETS)
        for k, only in ((2, False), (3, True))
    ],
    "Uni-LoRA, save_indices": [peft.UniLoraConfig(r=2, save_indices=True, theta_d_length=32, **TARGETS)],
    "TinyLoRA of one vector, save_projection": [
        peft.TinyLoraConfig(r=2, u=8, save_projection=True, weight_tying=1.0, **TARGETS)
    ],
    "C3A": [peft.C3AConfig(block_size=8, **TARGETS)],
    "GraLoRA": [
        peft.GraloraConfig(r=8, alpha=6, gralora_k=2, **TARGETS),
        peft.GraloraConfig(r=8, alpha=6, gralora_k=4, hybrid_r=2, **TARGETS),
    ],
    "DeLoRA": [peft.DeloraConfig(r=4, **TARGETS)],
    "aLoRA": [quiet(peft.LoraConfig, r=4, lora_alpha=6, alora_invocation_tokens=[1, 2], **TARGETS)],
    "PiSSA, not converted": [
        peft.LoraConfig(r=4, lora_alpha=6, init_lora_weights="pissa", use_rslora=rs, **TARGETS) for rs in (False, True)
    ],
    "OLoRA, not converted": [peft.LoraConfig(r=4, lora_alpha=6, init_lora_weights="olora", **TARGETS)],
    "DoRA": [peft.LoraConfig(r=4, lora_alpha=6, use_dora=True, **TARGETS)],
    "VeRA, PVeRA, save_projection": [
        peft.VeraConfig(r=3, save_projection=True, **TARGETS), peft.PveraConfig(r=3, save_projection=True, **TARGETS)
    ],
    "RandLoRA, save_projection": [peft.RandLoraConfig(r=3, save_projection=True, **TARGETS)],
    "SHiRA": [peft.ShiraConfig(r=2, **TARGETS)],
    "Super-tuning": [SupertuningConfig(sparsity=0.9, **TARGETS), SupertuningConfig(sparsity=0.9, r=2, **TARGETS)],
    "FourierFT": [peft.FourierFTConfig(n_frequency=12, scaling=20, **TARGETS)],
    "WaveFT": [
        peft.WaveFTConfig(n_frequency=12, **TARGETS),
        peft.WaveFTConfig(n_frequency=12, wavelet_family="db3", **TARGETS),
        peft.WaveFTConfig(n_frequency=12, use_idwt=False, random_loc_seed=3, **TARGETS),
    ],
    "MiSS": [peft.MissConfig(r=4, **TARGETS), peft.MissConfig(r=3, **TARGETS)],
    "MiSS, mini": [peft.MissConfig(r=4, mini_r=2, init_weights="mini", **TARGETS)],
    "MiSS, bat": [peft.MissConfig(r=4, init_weights="bat", **TARGETS)],
    "IA³": [peft.IA3Config(feedforward_modules=["to_k"], **TARGETS)],
    "HiRA": [peft.HiraConfig(r=4, **TARGETS)],
    "OFT": [
        peft.OFTConfig(r=0, oft_block_size=4, **TARGETS),
        peft.OFTConfig(r=2, oft_block_size=0, use_cayley_neumann=False, **TARGETS),
        peft.OFTConfig(r=0, oft_block_size=4, num_cayley_neumann_terms=3, **TARGETS),
        peft.OFTConfig(r=0, oft_block_size=4, coft=True, eps=1e-1, **TARGETS),
        peft.OFTConfig(r=0, oft_block_size=4, block_share=True, **TARGETS),
    ],
    "BOFT of one butterfly factor": [peft.BOFTConfig(boft_block_size=4, **TARGETS)],
    "HRA": [peft.HRAConfig(r=4, **TARGETS), peft.HRAConfig(r=4, apply_GS=True, **TARGETS)],
}  # fmt: skip
ROWS = {row.name: row for row in ADAPTERS}
CASES = [pytest.param(name, n, id=f"{name} {n}") for name, configs in READ.items() for n in range(len(configs))]


@pytest.mark.parametrize(("name", "n"), CASES)
def test_an_adapter_that_peft_saved_is_what_its_forward_pass_does(tmp_path, name, n):
    needs_base = ROWS[name].reading == WITH_BASE
    truth = adapter(tmp_path, READ[name][n])
    held(tmp_path, truth, base=True)  # a base that is named does no harm
    if needs_base:
        with pytest.raises(LoraFileError, match=r"weights\.base") as caught:
            read_lora(tmp_path / "lora")
        assert len(str(caught.value).removeprefix(str(tmp_path))) < 460
    else:
        held(tmp_path, truth, base=False)


def test_an_activated_lora_is_marked(tmp_path):
    adapter(tmp_path, READ["aLoRA"][0])
    assert any("invocation tokens" in remark for remark in open_lora(tmp_path / "lora").layout.remarks)


@pytest.mark.parametrize("name", ["vera", "pvera"])
def test_shared_matrices_fit_layers_of_one_size_without_the_base(tmp_path, name):
    """What the base tells of VeRA is how wide a layer is: layers that are alike have the matrices' width."""
    kind = {"vera": peft.VeraConfig, "pvera": peft.PveraConfig}[name]
    truth = adapter(tmp_path, kind(r=3, save_projection=True, target_modules=["to_q"]))
    truth = {module: value for module, value in truth.items() if module.endswith("to_q")}
    held(tmp_path, truth, base=False)


def test_pissa_that_was_converted_is_an_ordinary_lora_of_twice_the_rank(tmp_path):
    torch.manual_seed(0)
    base = Block()
    weights = {name: value.detach().clone().double() for name, value in base.state_dict().items()}
    warnings.simplefilter("ignore")
    model = peft.get_peft_model(base, READ["PiSSA, not converted"][0])
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter) * 0.1
    layer = model.get_submodule(f"base_model.model.{PREFIX}.{Q}")
    W = (layer.base_layer.weight + layer.get_delta_weight("default")).detach().double()
    model.save_pretrained(tmp_path / "lora", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    updates = read_lora(tmp_path / "lora").updates
    near(dense(updates[f"unet.{PREFIX}.{Q}"]), (W - weights[f"{PREFIX}.{Q}.weight"]).numpy(), 1e-5)


class Other(nn.Module):
    """Layers that are not linear, under names of a UNet."""

    def __init__(self, layer: nn.Module, name: str):
        super().__init__()
        self.config = {"model_type": "none"}
        self.mid_block = nn.Module()
        self.mid_block.add_module("resnets", nn.ModuleList([nn.ModuleDict({name: layer})]))


def saved(folder, layer, name, config):
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    model = peft.get_peft_model(Other(layer, name), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model.double().eval().get_submodule(f"base_model.model.mid_block.resnets.0.{name}")


@pytest.mark.parametrize("groups", [1, 4])
def test_a_convolution_is_what_its_forward_pass_does(tmp_path, groups):
    """PEFT gives groups to B alone, so the update leaves the groups of the layer: its own merge cannot do that."""
    conv = nn.Conv2d(8, 16, 3, groups=groups)
    layer = saved(tmp_path, conv, "conv1", peft.LoraConfig(r=4, lora_alpha=6, target_modules=["conv1"]))
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        change = (layer(x) - layer.base_layer(x)).numpy()
    update = read_lora(tmp_path).updates["unet.mid_block.resnets.0.conv1"]
    found = nn.functional.conv2d(x, torch.from_numpy(dense(update).reshape(16, 8, 3, 3))).numpy()
    near(found, change)


@pytest.mark.parametrize("forward", [False, True])
def test_factors_of_a_convolution_are_of_its_inputs_or_outputs(tmp_path, forward):
    """PEFT's IA³ has (1, channels, 1, 1) either way; the base's shape tells which, and bias goes with outputs."""
    config = peft.IA3Config(target_modules=["conv1"], feedforward_modules=["conv1"] if forward else [])
    for channels in (8, 16):
        conv = nn.Conv2d(channels, 16, 3)
        folder = tmp_path / str(channels)
        layer = saved(folder, conv, "conv1", config)
        (folder / "base/unet").mkdir(parents=True)
        name = "mid_block.resnets.0.conv1"
        W, bias = layer.base_layer.weight.detach().clone(), layer.base_layer.bias.detach().clone()
        save_file({f"{name}.weight": W.float(), f"{name}.bias": bias.float()}, folder / "base/unet/model.safetensors")
        if channels == 16:
            with pytest.raises(LoraFileError, match="inputs or of its outputs"):
                read_lora(folder, base=str(folder / "base"))
            continue
        layer.merge()
        updates = read_lora(folder, base=str(folder / "base")).updates
        near(dense(updates[f"unet.{name}"]), (layer.base_layer.weight.detach() - W).numpy().reshape(16, -1))
        if forward:
            assert set(updates) == {f"unet.{name}"}
        else:
            near(dense(updates[f"unet.{name}.bias"])[:, 0], (layer.base_layer.bias.detach() - bias).numpy())


def test_an_embedding_is_what_its_forward_pass_does(tmp_path):
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["words"])
    layer = saved(tmp_path, nn.Embedding(10, 6), "words", config)
    with torch.no_grad():
        change = (layer(torch.arange(10)) - layer.base_layer(torch.arange(10))).numpy()
    near(dense(read_lora(tmp_path).updates["unet.mid_block.resnets.0.words"]), change)


class Experts(nn.Module):
    """Two weights (experts, out, in) or (experts, in, out), of which PEFT keeps one layer's in the other's."""

    def __init__(self, transposed: bool):
        super().__init__()
        self.is_transposed = transposed
        self.w = nn.Parameter(torch.randn(3, *((16, 24) if transposed else (24, 16))))
        self.v = nn.Parameter(torch.randn(3, *((24, 12) if transposed else (12, 24))))

    def forward(self, x):
        return x


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rs", [False, True])
def test_each_expert_of_a_parameter_has_an_update_of_its_own(tmp_path, transposed, rs):
    config = peft.LoraConfig(
        r=4, lora_alpha=6, use_rslora=rs, target_modules=[], target_parameters=["conv1.w", "conv1.v"]
    )  # fmt: skip
    outer = saved(tmp_path, Experts(transposed), "conv1", config)
    updates = read_lora(tmp_path).updates
    assert len(updates) == 6
    for layer, name in ((outer, "conv1"), (outer.base_layer, "conv1.base_layer")):
        every = layer.get_delta_weight("default").detach().numpy()
        for e, change in enumerate(every):
            near(dense(updates[f"unet.mid_block.resnets.0.{name}.{e}"]), change.T if transposed else change)


# --- what is no update by itself

T = dict(TARGETS)
REFUSED = {
    "PiSSA by a random start, CorDA, LoftQ, LoRA-GA, not converted": [
        (peft.LoraConfig(r=4, init_lora_weights="pissa_niter_4", **T), "began as a part of the base's own weights")
    ],
    "VeRA, PVeRA, RandLoRA, without save_projection": [
        (quiet(kind, r=3, save_projection=False, **T), "saved without its shared matrices")
        for kind in (peft.VeraConfig, peft.PveraConfig, peft.RandLoraConfig)
    ],
    "Uni-LoRA without save_indices": [
        (quiet(peft.UniLoraConfig, r=2, theta_d_length=32, **T), "without what says which module has which")
    ],
    "TinyLoRA of several vectors, or without save_projection": [
        (peft.TinyLoraConfig(r=2, u=8, save_projection=True, **T), "of several vectors"),
        (quiet(peft.TinyLoraConfig, r=2, u=8, save_projection=False, weight_tying=1.0, **T), "not a whole TinyLoRA"),
    ],
    "GLoRA": [(peft.GloraConfig(**T), "GLoRA scales the base's weights")],
    "FRoD": [(peft.FrodConfig(progressbar=False, **T), "FRoD's U is made of all the base's")],
    "PSOFT": [(peft.PsoftConfig(r=4, **T), "PSOFT turns the base's singular directions")],
    "OSF": [(peft.OSFConfig(**T), "OSF's are the base's own lower singular directions")],
    "AdaMSS": [(peft.AdamssConfig(**T), "which rows AdaMSS")],
    "DEFT": [(peft.DeftConfig(**T), "DEFT takes a projection")],
    "PEANuT": [(peft.PeanutConfig(**T), "PEANuT is a network of the base's weights")],
    "RoAd": [(peft.RoadConfig(group_size=8, **T), "RoAd turns the base's outputs")],
    "Lily": [(peft.LilyConfig(r=4, **T), "Lily's router depends on the input")],
    "BEFT": [(peft.BeftConfig(**T), "BEFT has biases alone")],
    "LN tuning": [(peft.LNTuningConfig(**T), "LN tuning saves whole layers")],
}
REFUSALS = [pytest.param(*case, id=f"{name} {n}") for name, cases in REFUSED.items() for n, case in enumerate(cases)]


@pytest.mark.parametrize(("config", "reason"), REFUSALS)
def test_an_adapter_whose_update_does_not_follow_is_refused_with_the_true_reason(tmp_path, config, reason):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.get_peft_model(Block(), config).save_pretrained(tmp_path)
    for base in (None, str(tmp_path)):
        with pytest.raises(LoraFileError, match=reason) as caught:
            open_lora(tmp_path, base=base)
        assert len(str(caught.value).removeprefix(str(tmp_path))) < 460


@pytest.mark.parametrize(
    ("row", "key", "reason"),
    [
        (
            "BOFT of several butterfly factors",
            "mid_block.x.boft_R (3, 4, 4, 4) mid_block.x.boft_s (24, 1)",
            "butterfly factors",
        ),
        ("OFT of kohya", "oft_unet_mid_block_attentions_0_proj_in.oft_blocks (2, 4, 4)", "biases too"),
        ("OFT, scaled", "unet.mid_block.x.oft_R.scaled_oft (1,)", "how is not in the file"),
        ("T-LoRA", "unet.mid_block.x.q_layer.weight (4, 4)", "a start that is not in the file"),
        ("X-LoRA, Poly", "unet.mid_block.x.poly_lora_A (4, 4)", "mixed by what the input is"),
        ("ShadowPEFT", "shadow_model.x (4, 4)", "of which no weight changes"),
        ("prompts, prefixes, cartridges", "prompt_embeddings (4, 4)", "learns inputs and changes no weight"),
    ],
)
def test_other_keys_of_adapters_are_refused_with_the_true_reason(tmp_path, row, key, reason):
    assert ROWS[row].reading == NOT
    words = key.replace(", ", ",").split()
    shapes = {
        name: tuple(int(n) for n in shape.strip("()").split(",") if n)
        for name, shape in zip(words[::2], words[1::2], strict=True)
    }
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, tmp_path / "x.safetensors")
    with pytest.raises(LoraFileError, match=reason):
        open_lora(tmp_path / "x.safetensors")


def test_every_row_of_the_table_is_proven():
    """By a case here, or in test_lycoris.py."""
    here = set(READ) | set(REFUSED) | {
        "LoRA, target_parameters", "LoRA of a convolution", "LoRA of a convolution in groups", "LoRA of an embedding",
        "PiSSA, OLoRA and their kin, converted", "BOFT of several butterfly factors", "OFT of kohya", "OFT, scaled",
        "T-LoRA", "X-LoRA, Poly", "ShadowPEFT", "prompts, prefixes, cartridges",
    }  # fmt: skip
    elsewhere = {
        "LoCon with a Tucker core", "LoKr, both factors whole, rs_lora", "DyLoRA, LoRA-FA", "full", "Diag-OFT",
    }  # fmt: skip
    assert here | elsewhere == set(ROWS)
    assert {ROWS[name].reading for name in REFUSED} == {NOT}
    assert {ROWS[name].reading for name in READ} == {EXACTLY, WITH_BASE}


TYPES = {
    "LORA": "LoRA", "ADALORA": "AdaLoRA", "ADAMSS": "AdaMSS", "BOFT": "BOFT of one butterfly factor", "IA3": "IA³",
    "BEFT": "BEFT", "LILY": "Lily", "LOHA": "LoHa", "LOKR": "LoKr", "OFT": "OFT", "POLY": "X-LoRA, Poly",
    "LN_TUNING": "LN tuning", "VERA": "VeRA, PVeRA, save_projection", "FROD": "FRoD",
    "PVERA": "VeRA, PVeRA, save_projection",
    "FOURIERFT": "FourierFT", "GLORA": "GLoRA", "XLORA": "X-LoRA, Poly", "HRA": "HRA", "VBLORA": "VB-LoRA",
    "UNILORA": "Uni-LoRA, save_indices", "MISS": "MiSS", "RANDLORA": "RandLoRA, save_projection", "ROAD": "RoAd",
    "HIRA": "HiRA", "SHIRA": "SHiRA", "C3A": "C3A", "WAVEFT": "WaveFT", "OSF": "OSF", "DELORA": "DeLoRA",
    "GRALORA": "GraLoRA", "TINYLORA": "TinyLoRA of one vector, save_projection", "PSOFT": "PSOFT", "PEANUT": "PEANuT",
    "SHADOW": "ShadowPEFT", "SUPERTUNING": "Super-tuning", "DEFT": "DEFT",
    **dict.fromkeys(
        ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT",
         "TRAINABLE_TOKENS", "CARTRIDGE"), "prompts, prefixes, cartridges",
    ),
}  # fmt: skip


def test_every_adapter_of_peft_has_a_row():
    assert {each.value for each in peft.PeftType} == set(TYPES) and set(TYPES.values()) <= set(ROWS)
