"""Makes tests/support/lycoris.safetensors: what LyCORIS saves, and its own forward pass in float64 as the truth.

    pip install lycoris-lora==4.1.3 einops; python tests/support/make_lycoris.py tests/support/lycoris.safetensors

Keys are CASE|part of what the module saves, and CASE|W (the base), CASE|dW (the truth). Layers are
small; numbers are drawn from one seed.
"""

import sys
from pathlib import Path

import torch
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.full import FullModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.tlora import TLoraModule
from safetensors.torch import save_file
from torch import nn

LINEAR, CONV, ROOT = "linear", "conv", {"rs_lora": True}
WHOLE = {"lora_dim": 8, "full_matrix": True}
CASES = {
    "LoCon": (LoConModule, LINEAR, {}), "LoCon, convolution": (LoConModule, CONV, {}),
    "LoCon, Tucker": (LoConModule, CONV, {"use_tucker": True}), "LoCon, rs_lora": (LoConModule, LINEAR, ROOT),
    "LoCon, scalar": (LoConModule, LINEAR, {"use_scalar": True}),
    "LoCon, DoRA": (LoConModule, LINEAR, {"weight_decompose": True}),
    "LoCon, DoRA of inputs": (LoConModule, CONV, {"weight_decompose": True, "wd_on_out": False}),
    "LoHa": (LohaModule, LINEAR, {}), "LoHa, Tucker, rs_lora": (LohaModule, CONV, {"use_tucker": True, **ROOT}),
    "LoHa, DoRA": (LohaModule, LINEAR, {"weight_decompose": True}),
    "LoHa, DoRA of inputs": (LohaModule, CONV, {"weight_decompose": True, "wd_on_out": False}),
    "LoKr": (LokrModule, LINEAR, {"factor": 4, "lora_dim": 2}),
    "LoKr, both": (LokrModule, LINEAR, {"decompose_both": True, "lora_dim": 1}),
    "LoKr, Tucker": (LokrModule, CONV, {"use_tucker": True, "factor": 4, "lora_dim": 1}),
    "LoKr, scalar": (LokrModule, LINEAR, {"use_scalar": True, "lora_dim": 2}),
    "LoKr, unbalanced": (LokrModule, LINEAR, {"unbalanced_factorization": True, "lora_dim": 1}),
    "LoKr, rs_lora": (LokrModule, LINEAR, {"factor": 4, "lora_dim": 2, **ROOT}),
    "LoKr, whole": (LokrModule, LINEAR, WHOLE), "LoKr, whole, 100000": (LokrModule, LINEAR, {"lora_dim": 100000}),
    "LoKr, whole, rs_lora 8": (LokrModule, LINEAR, WHOLE | ROOT),
    "LoKr, whole, rs_lora 4": (LokrModule, LINEAR, WHOLE | ROOT | {"lora_dim": 4}),
    "LoKr, DoRA": (LokrModule, LINEAR, {"factor": 4, "lora_dim": 2, "weight_decompose": True}),
    "LoKr, whole, DoRA of inputs": (LokrModule, LINEAR, WHOLE | {"weight_decompose": True, "wd_on_out": False}),
    "full": (FullModule, LINEAR, {}), "IA3": (IA3Module, LINEAR, {}),
    "IA3 of inputs": (IA3Module, LINEAR, {"train_on_input": True}),
    "IA3, convolution": (IA3Module, CONV, {"train_on_input": True}),
    "Diag-OFT": (DiagOFTModule, LINEAR, {}),
    "Diag-OFT, rescaled, held": (DiagOFTModule, CONV, {"rescaled": True, "constraint": 0.02}),
    "T-LoRA": (TLoraModule, LINEAR, {}),
}  # fmt: skip


def make(kind, layer: str, settings: dict) -> dict[str, torch.Tensor]:
    """What one module saves, the base's weight and the truth."""
    base = nn.Linear(16, 24) if layer == LINEAR else nn.Conv2d(8, 12, 3)
    dim = {"lora_dim": 4, "alpha": 2, **settings}
    module = kind("lora_unet_x", base, multiplier=1.0, **dim)
    W = base.weight.detach().clone()
    module.apply_to()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter) * 0.2
    module.eval()
    saved = {key: value.detach().clone().contiguous() for key, value in module.state_dict().items()}
    exact = torch.float32 if kind is DiagOFTModule else torch.float64  # whose forward pass is of float32 alone
    module, base = module.to(exact), base.to(exact)
    with torch.no_grad():
        if layer == LINEAR:
            found = (module(torch.eye(16, dtype=exact)) - module(torch.zeros(1, 16, dtype=exact))).T
        else:  # an impulse at the middle of five by five gives the kernel turned round
            zero = module(torch.zeros(1, 8, 5, 5, dtype=exact))
            found = torch.zeros(12, 8, 3, 3, dtype=exact)
            for i in range(8):
                x = torch.zeros(1, 8, 5, 5, dtype=exact)
                x[0, i, 2, 2] = 1
                found[:, i] = (module(x) - zero)[0].flip(-1, -2)
    return saved | {"W": W, "dW": (found.double() - W.double()).contiguous()}


if __name__ == "__main__":
    torch.manual_seed(0)
    every = {f"{name}|{key}": value for name, case in CASES.items() for key, value in make(*case).items()}
    Path(sys.argv[1]).parent.mkdir(parents=True, exist_ok=True)
    save_file(every, sys.argv[1], {"lycoris-lora": "4.1.3"})
