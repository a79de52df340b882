"""Small LoRA files of every kind, and their dense updates by the formulas of the papers, in float64."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

REAL = Path(__file__).parents[2] / "../shared/data/loras"
# Of one shape: 6 × 36, as 6 outputs and 4 channels with a kernel of 3 × 3; Kronecker factors of 2 × 2 and 3 × 18.
OUT, CHANNELS, KERNEL = 6, 4, (3, 3)
SHAPE = (OUT, CHANNELS * math.prod(KERNEL))
Parts = dict[str, np.ndarray]


def _lora(rng, r) -> tuple[Parts, np.ndarray]:
    p = {"lora_down.weight": rng((r, SHAPE[1])), "lora_up.weight": rng((OUT, r))}
    return p, p["lora_up.weight"] @ p["lora_down.weight"]


def _locon(rng, r):
    p = {"lora_down.weight": rng((r, CHANNELS, *KERNEL)), "lora_up.weight": rng((OUT, r, 1, 1))}
    return p, np.einsum("or,rikl->oikl", p["lora_up.weight"][..., 0, 0], p["lora_down.weight"])


def _tucker(rng, r):
    p = {
        "lora_down.weight": rng((r, CHANNELS, 1, 1)),
        "lora_mid.weight": rng((r + 1, r, *KERNEL)),
        "lora_up.weight": rng((OUT, r + 1, 1, 1)),
    }
    down, mid, up = p.values()
    return p, np.einsum("op,pqkl,qi->oikl", up[..., 0, 0], mid, down[..., 0, 0])


def _loha(rng, r):
    p = {f"hada_{w}": rng((OUT, r) if w[-1] == "a" else (r, SHAPE[1])) for w in ("w1_a", "w1_b", "w2_a", "w2_b")}
    a, b, c, d = p.values()
    return p, (a @ b) * (c @ d)


def _loha_tucker(rng, r):
    p = {f"hada_t{n}": rng((r, r, *KERNEL)) for n in "12"}
    p |= {f"hada_w{n}_a": rng((r, OUT)) for n in "12"} | {f"hada_w{n}_b": rng((r, CHANNELS)) for n in "12"}
    first, second = (np.einsum("ijkl,ip,jr->prkl", p[f"hada_t{n}"], p[f"hada_w{n}_a"], p[f"hada_w{n}_b"]) for n in "12")
    return p, first * second


def _kron(w1, w2):
    return np.kron(w1.reshape(*w1.shape, *[1] * (w2.ndim - 2)), w2)


def _lokr(rng, r):
    p = {"lokr_w1_a": rng((2, r)), "lokr_w1_b": rng((r, 2)), "lokr_w2_a": rng((3, r)), "lokr_w2_b": rng((r, 18))}
    a, b, c, d = p.values()
    return p, _kron(a @ b, c @ d)


def _lokr_half(rng, r):
    p = {"lokr_w1": rng((2, 2)), "lokr_w2_a": rng((3, r)), "lokr_w2_b": rng((r, 18))}
    w1, c, d = p.values()
    return p, _kron(w1, c @ d)


def _lokr_conv(rng, r):
    p = {"lokr_w1_a": rng((2, r)), "lokr_w1_b": rng((r, 2)), "lokr_w2": rng((3, 2, *KERNEL))}
    a, b, w2 = p.values()
    return p, _kron(a @ b, w2)


def _lokr_whole(rng, r):
    p = {"lokr_w1": rng((2, 2)), "lokr_w2": rng((3, 2, *KERNEL))}
    return p, _kron(*p.values())


def _lokr_tucker(rng, r):
    p = {"lokr_w1": rng((2, 2)), "lokr_t2": rng((r, r, *KERNEL)), "lokr_w2_a": rng((r, 3)), "lokr_w2_b": rng((r, 2))}
    w1, t, a, b = p.values()
    return p, _kron(w1, np.einsum("ijkl,ip,jr->prkl", t, a, b))


def _full(rng, r):
    p = {"diff": rng((OUT, CHANNELS, *KERNEL))}
    return p, p["diff"]


KINDS = {
    "LoRA": _lora, "LoCon": _locon, "Tucker": _tucker, "LoHa": _loha, "LoHa, Tucker": _loha_tucker, "LoKr": _lokr,
    "LoKr, one whole": _lokr_half, "LoKr, second whole": _lokr_conv, "LoKr, both whole": _lokr_whole,
    "LoKr, Tucker": _lokr_tucker, "full": _full,
}  # fmt: skip
SCALED = [kind for kind in KINDS if kind not in ("LoKr, both whole", "full")]


def parts(kind: str, seed: int, rank: int = 2) -> tuple[Parts, np.ndarray]:
    """Tensors (float32) of an update by the part's name, and the dense update (6, 36) float64 at a scale of one."""
    rng = np.random.default_rng(seed)
    # float32 numbers, in float64 for the formulas
    found, dense = KINDS[kind](lambda shape: rng.normal(size=shape).astype(np.float32).astype(np.float64), rank)
    return {name: value.astype(np.float32) for name, value in found.items()}, dense.reshape(SHAPE)


def store(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, path, metadata)
    return path


def build(path: Path, header: dict | str, data: bytes = b"", claimed: int | None = None) -> Path:
    """A safetensors file byte by byte, sound or not."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes((len(text) if claimed is None else claimed).to_bytes(8, "little") + text + data)
    return path


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def lora(path: Path, modules: dict[str, tuple[int, int]], seed: int, rank: int = 2, *, down="lora_A", up="lora_B"):
    """A file of random factors of modules (out, in); returns its path."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for module, (out, width) in modules.items():
        tensors[f"{module}.{down}.weight"] = rng.normal(size=(rank, width)).astype(np.float32)
        tensors[f"{module}.{up}.weight"] = rng.normal(size=(out, rank)).astype(np.float32)
    return store(path, tensors)


def sd1(attentions=("attn1", "attn2"), leaves=("to_q", "to_k", "to_v", "to_out.0")) -> dict[str, tuple[int, int]]:
    """Attention layers of SD 1.x at their true shapes (a few blocks), by diffusers' names."""
    found = {}
    for block, width in (("down_blocks.0", 320), ("down_blocks.1", 640), ("up_blocks.3", 320)):
        for attention in attentions:
            for leaf in leaves:
                text = attention == "attn2" and leaf in ("to_k", "to_v")
                name = f"unet.{block}.attentions.0.transformer_blocks.0.{attention}.{leaf}"
                found[name] = (width, 768 if text else width)
    return found


def kohya(tensors: Parts, alpha: bool = False) -> Parts:
    """The same tensors under kohya's names."""
    found = {}
    for key, value in tensors.items():
        module = key.removesuffix(".lora_A.weight").removesuffix(".lora_B.weight")
        model, _, rest = module.partition(".")
        prefix = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}[model]
        name = f"{prefix}_{rest.replace('.', '_')}"
        found[f"{name}.lora_{'down' if '.lora_A.' in key else 'up'}.weight"] = value
        if alpha and ".lora_A." in key:
            found[f"{name}.alpha"] = np.array(len(value), np.float32)
    return found


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    return SimpleNamespace(
        parts=parts, kinds=tuple(KINDS), scaled=tuple(SCALED), shape=SHAPE, store=store, build=build, entry=entry,
        lora=lora, sd1=sd1, kohya=kohya,
    )  # fmt: skip


@pytest.fixture(scope="session")
def real() -> Path:
    """LoRA files of other people; they lie outside of the repository."""
    if not REAL.is_dir():
        pytest.skip("../shared/data/loras is absent: real LoRA files are no part of the repository")
    return REAL
