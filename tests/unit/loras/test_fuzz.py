"""Damaged and hostile files: each is imported, or refused with the one documented error, in little memory."""

import json
import tracemalloc
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from lora_atlas.loras.container import LoraFileError
from lora_atlas.loras.factors import finite
from lora_atlas.loras.files import Lora, open_lora, read_lora
from lora_atlas.weights.gram import gram

MUTANTS = 8_000  # `make fuzz` makes as many more as one likes
TRACED = 20  # of so many, one has its memory measured; that is slow
# Above twice the file: what a header may claim for small files (shapes.FREE_GROWTH), and Python's own.
CONSTANT = 96 * 2**20

Q = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
KEYS = [
    "lora_unet_mid_block_resnets_0_conv1", "lora_unet_input_blocks_1_1_proj_in", "lora_te1_text_projection",
    "lycoris_conv_in", "unet.conv_in", "diffusion_model.double_blocks.0.img_attn.qkv",
    "lora_unet_final_layer_adaLN_modulation_1", "lora_unet_single_blocks_0_linear1", "base_model.model.conv_in",
    "unet:0", "double_blocks.0.processor.qkv_lora1", "mid_block.attentions.0.transformer_blocks.0.attn1.processor",
    "text_encoder", "", "\x00", "\u202e../..", "x" * 300,
]  # fmt: skip
PARTS = [
    "lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "dora_scale", "lora_A.weight", "lora_B.weight",
    "lora_A.default.weight", "lora_B.bias", "lora_magnitude_vector", "diff", "diff_b", "hada_w1_a", "hada_w1_b",
    "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a",
    "lokr_w2_b", "lokr_t2", "to_q_lora.down.weight", "to_out_lora.up.weight", "down", "up", "down.weight",
    "oft_blocks", "on_input", "emb_params", "",
]  # fmt: skip
DTYPES = [
    "F64",
    "F32",
    "F16",
    "BF16",
    "F8_E4M3",
    "F8_E5M2",
    "I64",
    "I32",
    "I16",
    "I8",
    "U8",
    "BOOL",
    "U32",
    "C64",
    "F4",
    "",
]
NUMBERS = [0, 1, 2, 3, 7, 8, 64, 10**3, 10**6, 2**31, 2**32, 2**63, 2**64, 10**30, -1, 1.5, 1e300, None, "2", True, []]
PATTERNS = [
    b"\x00\x00\xc0\x7f",
    b"\x00\x00\x80\x7f",
    b"\x00\x00\x80\xff",
    b"\xff\xff\x7f\x7f",
    b"\x01\x00\xa0\x7f",
    b"\xff" * 4,
]


@pytest.fixture(scope="module")
def seeds(make, tmp_path_factory) -> list[bytes]:
    """Small sound files of every kind and several namings."""
    folder, found = tmp_path_factory.mktemp("seeds"), []
    for n, kind in enumerate(make.kinds):
        parts, _ = make.parts(kind, n)
        name = KEYS[n % 4] if n % 2 else KEYS[0]
        tensors = {f"{name}.{part}": x for part, x in parts.items()} | {f"{name}.alpha": np.array(1, np.float32)}
        found.append(make.store(folder / "x.safetensors", tensors, {"ss_network_dim": "2"} if n % 2 else None))
        found[-1] = found[-1].read_bytes()
    plain = make.lora(folder / "y.safetensors", {Q: (5, 3), "unet.mid_block.resnets.0.conv1": (4, 6)}, 0)
    found.append(plain.read_bytes())
    half = {key: x.astype(np.float16) for key, x in load_file(plain).items()}
    config = json.dumps({"unet.r": 2, "unet.lora_alpha": 4, "unet.alpha_pattern": {"to_q": 1}})
    found.append(make.store(folder / "z.safetensors", half, {"lora_adapter_metadata": config}).read_bytes())
    flux = {f"lora_unet_{name}": (6, 2) for name in ("double_blocks_0_img_attn_qkv", "final_layer_adaLN_modulation_1")}
    found.append(make.lora(folder / "f.safetensors", flux, 0, down="lora_down", up="lora_up").read_bytes())
    assert all(read_bytes(folder, data) for data in found)
    return found


def read_bytes(folder: Path, data: bytes) -> int:
    path = folder / "seed.safetensors"
    path.write_bytes(data)
    return len(read_lora(path).updates)


def taken_apart(data: bytes) -> tuple[dict, bytes]:
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def joined(header: dict, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def flip(rng, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.integers(1, 9)):
        changed[rng.integers(len(changed))] ^= 1 << rng.integers(8)
    return bytes(changed)


def head(rng, data: bytes) -> bytes:
    """Bytes of the header, which is text, set to others that matter to a parser."""
    changed = bytearray(data)
    size = int.from_bytes(data[:8], "little")
    for _ in range(rng.integers(1, 4)):
        changed[8 + rng.integers(size)] = rng.choice(list(b'{}[]",:0123456789.-eE\\ aF\x00\xff'))
    return bytes(changed)


def cut(rng, data: bytes) -> bytes:
    if rng.random() < 0.3:
        return data + rng.bytes(int(rng.integers(1, 64)))
    start = int(rng.integers(len(data)))
    return data[:start] if rng.random() < 0.7 else data[:start] + data[start + int(rng.integers(1, 32)) :]


def claim(rng, data: bytes) -> bytes:
    """Other shapes, types and offsets."""
    header, rest = taken_apart(data)
    for _ in range(rng.integers(1, 3)):
        entry = header[pick(rng, [key for key in header if key != "__metadata__"])]
        what = rng.integers(6)
        if what == 0 and isinstance(entry["shape"], list) and entry["shape"]:
            entry["shape"][rng.integers(len(entry["shape"]))] = pick(rng, NUMBERS)
        elif what == 1:
            entry["shape"] = [pick(rng, NUMBERS) for _ in range(rng.integers(0, 6))]
        elif what == 2:
            entry["dtype"] = pick(rng, DTYPES)
        elif what == 3 and isinstance(entry["data_offsets"], list):
            entry["data_offsets"][rng.integers(2)] = pick(rng, [*NUMBERS, len(rest)])
        elif what == 4 and isinstance(entry["shape"], list):
            entry["shape"] = entry["shape"][::-1] if rng.random() < 0.5 else [1, *entry["shape"], 1]
        else:
            entry[pick(rng, ["shape", "dtype", "data_offsets", "more"])] = pick(rng, NUMBERS)
    return joined(header, rest)


def reshape(rng, data: bytes) -> bytes:
    """Shapes that lie about nothing: as many numbers, otherwise arranged; types of the same size."""
    header, rest = taken_apart(data)
    for key, entry in header.items():
        if key != "__metadata__" and rng.random() < 0.5:
            count = int(np.prod(entry["shape"]))
            first = pick(rng, [n for n in range(1, count + 1) if count % n == 0])
            entry["shape"] = pick(
                rng,
                [
                    [first, count // first],
                    [first, count // first, 1, 1],
                    [count],
                    [1, count],
                    [first, 1, count // first],
                ],
            )
    return joined(header, rest)


def rename(rng, data: bytes) -> bytes:
    """Keys of other modules, parts and formats."""
    header, rest = taken_apart(data)
    for key in list(header):
        if key != "__metadata__" and rng.random() < 0.6:
            name, _, part = key.partition(".lo") if rng.random() < 0.5 else key.rpartition(".")
            name = pick(rng, KEYS) if rng.random() < 0.4 else name
            header[f"{name}{pick(rng, '.:_')}{pick(rng, PARTS)}" if rng.random() < 0.7 else f"{name}.{part}"] = (
                header.pop(key)
            )
    return joined(header, rest)


def number(rng, data: bytes) -> bytes:
    """NaN, infinities, and the largest numbers among the tensors."""
    header, rest = taken_apart(data)
    changed = bytearray(rest)
    for _ in range(rng.integers(1, 4)):
        at = 4 * int(rng.integers(len(changed) // 4))
        changed[at : at + 4] = pick(rng, PATTERNS)
    return joined(header, bytes(changed[: len(rest)]))


def grow(rng, data: bytes) -> bytes:
    """Tensors that are truly large in one direction, of few bytes a number, or of none."""
    header, _ = taken_apart(data)
    at, sizes = 0, {"F32": 4, "F16": 2, "U8": 1}
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        entry["dtype"] = pick(rng, list(sizes))
        if rng.random() < 0.5 and entry["shape"]:
            entry["shape"][rng.integers(len(entry["shape"]))] *= pick(rng, [0, 2, 50, 400])
        size = int(np.prod(entry["shape"])) * sizes[entry["dtype"]]
        if size > 10**5:
            entry["shape"], size = [1], sizes[entry["dtype"]]
        entry["data_offsets"] = [at, at + size]
        at += size
    return joined(header, bytes(at))


def metadata(rng, data: bytes) -> bytes:
    header, rest = taken_apart(data)
    names = ("r", "lora_alpha", "alpha_pattern", "rank_pattern", "use_rslora")
    values = [*NUMBERS, {"to_q": 3}, {"(a+)+$": 1}]
    config = {f"unet.{pick(rng, names)}": pick(rng, values) for _ in range(4)}
    said = pick(rng, [json.dumps(config), "{", "[]", "[" * 5000, "\x00", json.dumps({"unet": {}})])
    header["__metadata__"] = pick(rng, [{"lora_adapter_metadata": said}, {Q: "<embed>"}, None, 3, {"a": 1}, {"a": "b"}])
    return joined(header, rest)


MUTATIONS = [flip, head, cut, claim, reshape, rename, number, grow, metadata]


def pick(rng, among):
    return among[int(rng.integers(len(among)))]


def attempt(path: Path) -> str:
    """Read a file as the library's callers do: what came of it; any other exception is the test's."""
    try:
        lora = read_lora(path)
    except LoraFileError as error:
        said = str(error)
    else:
        return imported(path, lora)
    assert str(path) in said and all(line.isprintable() for line in said.splitlines())
    return "refused"


def imported(path: Path, lora: Lora) -> str:
    """What was imported is whole: numbers, of the shapes that the header promised."""
    assert lora.updates and all(finite(update) and min(update.shape) > 0 for update in lora.updates.values())
    specs = open_lora(path).layout.specs
    assert {module: update.shape for module, update in lora.updates.items()} == {m: s.shape for m, s in specs.items()}
    return "imported"


@pytest.mark.fault(
    "LoRA files", "eight thousand mutants of sound files", "imported whole, or refused; memory is bounded"
)
@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda f: f.__name__)
def test_every_mutant_is_imported_or_refused(seeds, tmp_path, mutation):
    path, seen = tmp_path / "x.safetensors", Counter()
    for n in range(-(-MUTANTS // len(MUTATIONS))):
        rng = np.random.default_rng([MUTATIONS.index(mutation), n])
        data = mutation(rng, pick(rng, seeds))
        if rng.random() < 0.1:
            data = pick(rng, [flip, cut])(rng, data)
        path.write_bytes(data)
        if n % TRACED:
            seen[attempt(path)] += 1
            continue
        tracemalloc.start()
        try:
            seen[attempt(path)] += 1
            assert tracemalloc.get_traced_memory()[1] < 2 * len(data) + CONSTANT, n
        finally:
            tracemalloc.stop()
    assert seen["refused"] > 15
    assert seen["imported"] > 15 or mutation in (cut, head)


@pytest.mark.fault("LoRA files", "mutants of a pickle", "imported whole, or refused")
@pytest.mark.parametrize("archive", [True, False], ids=["zip", "old"])
def test_mutants_of_a_pickle_that_a_person_allowed_are_imported_or_refused(make, tmp_path, archive):
    tensors = load_file(make.lora(tmp_path / "x.safetensors", {Q: (5, 3), "unet.conv_in": (4, 6)}, 0))
    path, seen = tmp_path / "x.bin", Counter()
    torch.save({k: torch.from_numpy(x) for k, x in tensors.items()}, path, _use_new_zipfile_serialization=archive)
    data = path.read_bytes()
    for n in range(400):
        rng = np.random.default_rng(n)
        path.write_bytes(pick(rng, [flip, cut])(rng, data))
        try:
            assert all(finite(update) for update in read_lora(path, pickles=True).updates.values())
            seen["imported"] += 1
        except LoraFileError:
            seen["refused"] += 1
    assert seen["refused"] > 100


def test_matrices_of_what_was_imported_are_finite_or_refused(seeds, tmp_path):
    """Numbers too large for products are the only thing that can still be wrong with an imported file."""
    path = tmp_path / "x.safetensors"
    with warnings.catch_warnings(action="error"):
        for n in range(300):
            rng = np.random.default_rng(n)
            path.write_bytes(pick(rng, [number, reshape])(rng, pick(rng, seeds)))
            try:
                grams = gram([path, path], "delta")
            except LoraFileError as error:
                assert str(path) in str(error)  # noqa: PT017
            else:
                assert all(np.isfinite(K).all() for K in grams.values())


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_rank_one_update_of_a_million_by_a_million_costs_megabytes(make, tmp_path, dtype):
    """Dense, it would be four terabytes."""
    from lora_atlas.weights.sketch import sketch

    side, rng = 10**6, np.random.default_rng(0)
    files = []
    for n in range(2):
        tensors = {
            f"{Q}.lora_A.weight": rng.normal(size=(1, side)).astype(dtype),
            f"{Q}.lora_B.weight": rng.normal(size=(side, 1)).astype(dtype),
        }
        files.append(make.store(tmp_path / f"{n}.safetensors", tensors))
    size = files[0].stat().st_size
    tracemalloc.start()
    try:
        lora = read_lora(files[0])
        assert tracemalloc.get_traced_memory()[1] < 2 * size + 16 * 2**20
        u = lora.updates[Q]
        norm = float(np.linalg.norm(u.A.astype(np.float64)) * np.linalg.norm(u.B.astype(np.float64)))
        (K,) = gram(files, "delta").values()
        assert tracemalloc.get_traced_memory()[1] < 150 * 2**20
        assert K[0, 0] == pytest.approx(norm**2, rel=1e-6) and abs(K[0, 1]) < 0.01 * norm**2
        found = sketch(open_lora(files[0]))
        assert tracemalloc.get_traced_memory()[1] < 250 * 2**20
    finally:
        tracemalloc.stop()
    assert np.linalg.norm(found.parts[Q]) == pytest.approx(norm, rel=0.05)
    assert found.norms[Q] == pytest.approx(norm, rel=1e-6)


@pytest.mark.parametrize("parts", [("diff",), ("lokr_w1", "lokr_w2"), ("lora_down.weight", "lora_up.weight")], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_large_file_is_read_in_twice_its_size(make, tmp_path, parts, dtype):
    """float16 becomes float32; a matrix that is whole has an identity beside it, which takes no room."""
    tensors = {}
    for n in range(16):
        for part in parts:
            shape = (2, 2) if part == "lokr_w1" else (1000, 1000)
            tensors[f"lora_unet_down_blocks_{n}_resnets_0_conv1.{part}"] = np.ones(shape, dtype)
    path = make.store(tmp_path / "x.safetensors", tensors)
    tracemalloc.start()
    try:
        assert len(read_lora(path).updates) == 16
        assert tracemalloc.get_traced_memory()[1] < 2 * path.stat().st_size + 16 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.fault("LoRA files", "a small core whose factor has billions of numbers", "refused before it is made")
@pytest.mark.parametrize(
    "shapes",
    [
        {"lora_mid.weight": (1, 1, 10**5), "lora_down.weight": (1, 10**5), "lora_up.weight": (1, 1)},
        {"lokr_w1": (1, 1), "lokr_t2": (1, 1, 10**5), "lokr_w2_a": (1, 1), "lokr_w2_b": (1, 10**5)},
        {
            f"hada_{p}": s
            for n in "12"
            for p, s in ((f"t{n}", (1, 1, 10**5)), (f"w{n}_a", (1, 1)), (f"w{n}_b", (1, 10**5)))
        },
    ],
    ids=["Tucker", "LoKr", "LoHa"],
)
def test_a_core_that_makes_a_factor_of_billions_is_refused_before_it_is_made(make, tmp_path, shapes):
    name = "lora_unet_mid_block_resnets_0_conv1"
    path = make.store(tmp_path / "x.safetensors", {f"{name}.{p}": np.ones(s, np.float32) for p, s in shapes.items()})
    tracemalloc.start()
    try:
        with pytest.raises(LoraFileError, match="grow beyond reason"):
            read_lora(path)
        assert tracemalloc.get_traced_memory()[1] < 2 * path.stat().st_size + 2**20
    finally:
        tracemalloc.stop()
