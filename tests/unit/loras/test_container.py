"""Files of tensors: plain pairs in every spelling, one way of writing them, and nothing unsound let in."""

import contextlib
import hashlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_files import build, entry
from safetensors.numpy import load_file, save_file

from lora_atlas.loras import pickles
from lora_atlas.loras.container import MAX_HEADER, MAX_TENSORS, NotFiniteError, open_container
from lora_atlas.loras.factors import Update, expanded
from lora_atlas.loras.files import LoraFileError, open_lora, read_lora, write_lora
from lora_atlas.weights.gram import gram

ROOT = Path(__file__).parents[3]
REAL = ROOT / "../shared/data/loras"
Q = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
K = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
A = np.arange(6, dtype=np.float32).reshape(2, 3) - 2
B = np.arange(8, dtype=np.float32).reshape(4, 2) / 4


def store(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> Path:
    save_file(tensors, path, metadata)
    return path


def pair(module: str = Q, a: np.ndarray = A, b: np.ndarray = B) -> dict[str, np.ndarray]:
    return {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}


def refusal(path: Path) -> str:
    """What both readers say against a file; each names it."""
    with pytest.raises(LoraFileError) as whole:
        read_lora(path)
    with pytest.raises(LoraFileError) as header:
        open_lora(path)
    assert str(whole.value) == str(header.value) and str(path) in str(whole.value)
    return str(whole.value).replace(str(path), "FILE")


@contextlib.contextmanager
def allocating_less_than(limit: int):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


# --- reading


@pytest.mark.parametrize(
    ("down", "up"),
    [
        ("lora_A.weight", "lora_B.weight"),
        ("lora_A.default.weight", "lora_B.default.weight"),
        ("lora.down.weight", "lora.up.weight"),
        ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
    ],
)
@pytest.mark.parametrize("module", [Q, "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj"])
def test_every_spelling_of_a_pair_is_the_same_update(tmp_path, module, down, up):
    path = store(tmp_path / "x.safetensors", {f"{module}.{down}": A, f"{module}.{up}": B})
    (update,) = read_lora(path).updates.values()
    assert update.module == module
    assert (update.A == A).all() and (update.B == B).all()
    file = open_lora(path)
    (spec,) = file.layout.specs.values()
    assert spec.keys == {"A": f"{module}.{down}", "B": f"{module}.{up}"}
    assert (spec.module, spec.kind, spec.shape, spec.rank) == (module, "LoRA", (4, 3), 2)
    assert file.layout.naming == "diffusers"


@settings(deadline=None, max_examples=50)
@given(
    rank=st.integers(1, 6),
    alpha=st.floats(0.125, 64, width=32),
    shape=st.sampled_from([(), (1,), (1, 1)]),
    seed=st.integers(0, 99),
)
def test_alpha_over_rank_is_folded_into_b(tmp_path_factory, rank, alpha, shape, seed):
    rng = np.random.default_rng(seed)
    a, b = (rng.normal(size=size).astype(np.float32) for size in ((rank, 5), (3, rank)))
    path = tmp_path_factory.getbasetemp() / "alpha.safetensors"
    store(path, pair(Q, a, b) | {f"{Q}.alpha": np.full(shape, alpha, np.float32)})
    update = read_lora(path).updates[Q]
    np.testing.assert_array_equal(update.A, a)
    np.testing.assert_allclose(update.B, alpha / rank * b, rtol=1e-6)


def test_no_alpha_and_an_alpha_of_zero_are_a_scale_of_one(tmp_path):
    none = store(tmp_path / "none.safetensors", pair())
    zero = store(tmp_path / "zero.safetensors", pair() | {f"{Q}.alpha": np.zeros((), np.float32)})
    rank = store(tmp_path / "rank.safetensors", pair() | {f"{Q}.alpha": np.array(2, np.float32)})
    assert all((read_lora(path).updates[Q].B == B).all() for path in (none, zero, rank))


def test_each_module_has_its_own_alpha(tmp_path):
    tensors = pair(Q) | pair(K) | {f"{Q}.alpha": np.array(4, np.float32), f"{K}.alpha": np.array(1, np.float32)}
    updates = read_lora(store(tmp_path / "x.safetensors", tensors)).updates
    assert (updates[Q].B == 2 * B).all() and (updates[K].B == B / 2).all()


def test_half_and_double_precision_are_read_as_float32(tmp_path):
    for dtype in (np.float16, np.float64):
        update = read_lora(store(tmp_path / "x.safetensors", pair(Q, A.astype(dtype), B.astype(dtype)))).updates[Q]
        assert update.A.dtype == update.B.dtype == np.float32
        assert (update.A == A).all() and (update.B == B).all()


def test_bfloat16_is_read_exactly(tmp_path):
    values = np.random.default_rng(0).normal(size=14).astype(np.float32)
    upper = (values.view(np.uint32) >> 16).astype(np.uint16)  # a bfloat16 is the upper half of a float32
    header = {
        f"{Q}.lora_A.weight": entry([2, 3], 0, 12, "BF16"),
        f"{Q}.lora_B.weight": entry([4, 2], 12, 28, "BF16"),
        f"{Q}.alpha": entry([], 28, 30, "BF16"),
    }
    four = np.array([0x4080], np.uint16)
    path = build(tmp_path / "x.safetensors", header, upper.tobytes() + four.tobytes())
    update = read_lora(path).updates[Q]
    expected = (upper.astype(np.uint32) << 16).view(np.float32)
    assert update.A.dtype == update.B.dtype == np.float32
    np.testing.assert_array_equal(update.A, expected[:6].reshape(2, 3))
    np.testing.assert_array_equal(update.B, 2 * expected[6:].reshape(4, 2))


def test_a_lora_knows_its_digest_and_its_header(tmp_path):
    path = store(tmp_path / "x.safetensors", pair(), {"ss_base_model_version": "sd_v1"})
    lora = read_lora(path)
    assert lora.path == path and lora.metadata == {"ss_base_model_version": "sd_v1"}
    assert lora.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_lora(store(path, pair())).metadata == {}


def test_module_by_module_gives_what_the_whole_file_gives(tmp_path):
    tensors = pair(Q) | pair(K, A.astype(np.float16), B) | {f"{Q}.alpha": np.array([8.0])}
    path = store(tmp_path / "x.safetensors", tensors)
    whole = read_lora(path).updates
    file = open_lora(path)
    assert list(whole) == list(file.layout.specs) == sorted([Q, K])
    with file.reading() as descriptor:
        for module in file.layout.specs:
            for update in (file.update(module, descriptor), file.update(module)):
                assert (update.A == whole[module].A).all() and (update.B == whole[module].B).all()


# --- writing


def test_what_is_written_is_read_back_and_any_safetensors_reader_opens_it(tmp_path):
    path = tmp_path / "new" / "x.safetensors"
    updates = {K: Update(K, A, B), Q: Update(Q, A[:1] * np.float64(3), np.asfortranarray(B[:, 1:]))}
    write_lora(path, updates, {"base": "x", "lora_atlas.recipe": "\u00e9"})
    lora = read_lora(path)
    told = {"format": "pt", "base": "x", "lora_atlas.recipe": "\u00e9"}
    assert lora.metadata == told | {"lora_atlas.content_sha256": lora.metadata["lora_atlas.content_sha256"]}
    for module, update in updates.items():
        assert (lora.updates[module].A == update.A).all() and (lora.updates[module].B == update.B).all()
    plain = load_file(path)
    assert set(plain) == {f"{m}.{part}.weight" for m in (Q, K) for part in ("lora_A", "lora_B")}
    assert {tensor.dtype for tensor in plain.values()} == {np.dtype(np.float32)}
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0  # the tensors are aligned
    assert [p.name for p in path.parent.iterdir()] == ["x.safetensors"]


def test_a_folded_scale_survives_writing_and_reading(tmp_path):
    first = store(tmp_path / "first.safetensors", pair() | {f"{Q}.alpha": np.array(16.0)})
    write_lora(tmp_path / "second.safetensors", read_lora(first).updates, {})
    again = read_lora(tmp_path / "second.safetensors").updates[Q]
    assert (again.B @ again.A == 8 * (B @ A)).all()


def test_bytes_depend_on_the_input_alone(tmp_path):
    """Not on the hash seed of the process, and not on the order in which modules and metadata come."""
    code = (
        "import sys; import numpy as np; from lora_atlas.loras.factors import Update\n"
        "from lora_atlas.loras.files import write_lora\n"
        "names = {'unet.' + c for c in 'abcdefgh'}; keys = {'k' + c for c in 'abcdefgh'}\n"
        "write_lora(sys.argv[1], {n: Update(n, np.ones((1, 3)), np.ones((2, 1))) for n in names}, {k: k for k in keys})"
    )
    found = []
    for seed in ("1", "2"):
        path = tmp_path / f"{seed}.safetensors"
        environment = os.environ | {"PYTHONPATH": str(ROOT / "workflow"), "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, str(path)], env=environment, check=True)
        found.append(path.read_bytes())
    for n in range(5):  # safetensors shuffles metadata again in every call
        names = ["unet." + c for c in "hgfedcba"[n:] + "hgfedcba"[:n]]
        updates = {name: Update(name, np.ones((1, 3)), np.ones((2, 1))) for name in names}
        write_lora(tmp_path / "x.safetensors", updates, {"k" + c: "k" + c for c in "hgfedcba"})
        found.append((tmp_path / "x.safetensors").read_bytes())
    assert len(set(found)) == 1


@pytest.mark.fault("LoRA files", "writing a LoRA fails halfway", "the old file stays, and nothing else")
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.safetensors"
    write_lora(path, {Q: Update(Q, A, B)}, {})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_lora(path, {K: Update(K, A, B)}, {"rank": object()})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_header_of_any_length_is_read(tmp_path):
    """Its length comes first in the file, and must not be taken for the first bytes of a pickle or an archive."""
    path = tmp_path / "x.safetensors"
    lengths = set()
    for spaces in range(0, 512, 8):
        write_lora(path, {Q: Update(Q, A, B)}, {"n": " " * spaces})
        lengths.add(path.read_bytes()[0])
        assert list(read_lora(path).updates) == [Q]
    assert lengths == set(range(0, 256, 8))
    text = json.dumps({f"{Q}.lora_A.weight": entry([2, 3], 0, 24), f"{Q}.lora_B.weight": entry([4, 2], 24, 56)})
    build(path, text.ljust(int.from_bytes(b"PK\0", "little")), A.tobytes() + B.tobytes())
    assert path.read_bytes()[:2] == b"PK" and list(read_lora(path).updates) == [Q]


# --- files that are not whole


def test_an_absent_file_and_a_folder_are_named(tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("absent.safetensors", "folder.safetensors"):
        assert refusal(tmp_path / name) == "FILE: no such file"


@pytest.mark.fault("LoRA files", "a file cut at any of six lengths", "refused as cut short or damaged")
@pytest.mark.parametrize("length", [0, 4, 8, 40, -8, -1])
def test_a_file_cut_short_is_refused(tmp_path, length):
    path = store(tmp_path / "x.safetensors", pair())
    path.write_bytes(path.read_bytes()[:length])
    assert any(word in refusal(path) for word in ("cut short", "damaged", "empty, a file of no bytes"))
    assert "it has 4 bytes" in refusal(path) or length != 4


@pytest.mark.fault("LoRA files", "bytes after the last tensor", "refused as damaged")
def test_trailing_bytes_are_refused(tmp_path):
    path = store(tmp_path / "x.safetensors", pair())
    path.write_bytes(path.read_bytes() + b"\0" * 8)
    assert "damaged" in refusal(path)


@pytest.mark.fault(
    "LoRA files", "overlaps, holes, ends beyond the file, shapes that are not the size", "refused as damaged"
)
@pytest.mark.parametrize(
    ("a", "b", "length"),
    [
        (entry([2, 3], 0, 24), entry([4, 2], 16, 48), 48),  # overlap
        (entry([2, 3], 0, 24), entry([4, 2], 32, 64), 64),  # a hole
        (entry([2, 3], 0, 24), entry([4, 2], 24, 56), 48),  # beyond the end
        (entry([2, 3], 0, 32), entry([4, 2], 32, 64), 64),  # a shape that is not the size
        (entry([2, 3], 0, 24), entry([4, 2], 24, 56, "F99"), 56),  # an unknown type
        (entry([2, -3], 0, 24), entry([4, 2], 24, 56), 56),  # a negative side
    ],
)
def test_offsets_that_lie_are_refused(tmp_path, a, b, length):
    header = {f"{Q}.lora_A.weight": a, f"{Q}.lora_B.weight": b}
    assert "damaged" in refusal(build(tmp_path / "x.safetensors", header, bytes(length)))


@pytest.mark.fault("LoRA files", "one key twice, which safetensors accepts", "refused, with the key")
def test_keys_that_come_twice_are_refused_by_name(tmp_path):
    a = json.dumps(entry([2, 3], 0, 24))
    b = json.dumps(entry([4, 2], 24, 56))
    keys = f'"{Q}.lora_A.weight":{a},"{Q}.lora_A.weight":{a},"{Q}.lora_B.weight":{b}'
    assert f"twice: {Q}.lora_A.weight)" in refusal(build(tmp_path / "x.safetensors", f"{{{keys}}}", bytes(56)))
    for inner in ('{"base":"a","base":"b"}', '{"a":"1","a":"1"}'):
        text = f'{{"__metadata__":{inner},"{Q}.lora_A.weight":{a},"{Q}.lora_B.weight":{b}}}'
        assert "twice" in refusal(build(tmp_path / "y.safetensors", text, bytes(56)))


def test_files_that_tell_the_same_tensors_after_other_metadata_are_read_each_where_its_tensors_are(make, tmp_path):
    """Headers are parsed once for all files of one trainer; offsets count from the end of each file's own."""
    for n, metadata in enumerate((None, {"a": "1"}, {"title": '\\"}, ' * 30}, {"b": "2"}, {})):
        values = {
            f"{Q}.lora_A.weight": np.full((2, 3), n, np.float32),
            f"{Q}.lora_B.weight": np.ones((4, 2), np.float32),
        }
        found = open_container(make.store(tmp_path / f"{n}.safetensors", values, metadata))
        np.testing.assert_array_equal(found.read(f"{Q}.lora_A.weight"), values[f"{Q}.lora_A.weight"])
        assert dict(found.metadata) == (metadata or {})
    late = f'{{"{Q}.lora_A.weight":{json.dumps(entry([2, 3], 0, 24))},"__metadata__": {{"a": "1"}} }}  '
    assert open_container(build(tmp_path / "late.safetensors", late, bytes(24))).metadata == {"a": "1"}


@pytest.mark.fault(
    "LoRA files", "a header of more than the largest size", "refused before it is read, in less than 1 MiB"
)
def test_a_bloated_header_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write((MAX_HEADER + 1).to_bytes(8, "little") + b"{")
        file.truncate(MAX_HEADER + 100)  # a sparse file: it fills no disk
    with allocating_less_than(2**20):
        assert "not a safetensors file" in refusal(path)


@pytest.mark.parametrize("text", ["[]", "null", "{", '{"x": 3}', "\0" * 16, '{"__metadata__": {"rank": 4}}'])
def test_a_header_of_another_form_is_refused(tmp_path, text):
    assert "damaged" in refusal(build(tmp_path / "x.safetensors", text))


# --- numbers that are not sound


@pytest.mark.fault("LoRA files", "NaN or ∞ in factors or α", "refused, with all keys")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused_and_all_their_keys_listed(tmp_path, bad):
    a, b = A.copy(), B.astype(np.float16)
    a[1, 2], b[0, 0] = bad, bad
    path = store(tmp_path / "x.safetensors", pair(Q, a) | pair(K, A, b) | {f"{Q}.alpha": np.array(bad)})
    with pytest.raises(LoraFileError) as caught:
        read_lora(path)
    expected = sorted([f"{Q}.alpha", f"{Q}.lora_A.weight", f"{K}.lora_B.weight"])
    assert str(caught.value) == f"{path}: not finite: {', '.join(expected)}"
    assert caught.value.keys == expected
    with pytest.raises(NotFiniteError, match=r"lora_B\.weight") as caught:
        open_lora(path).update(K)
    assert str(path) in str(caught.value) and caught.value.keys == [f"{K}.lora_B.weight"]


@pytest.mark.fault("LoRA files", "α below zero, or of 1e30", "refused by name")
@pytest.mark.parametrize("alpha", [-1.0, 1e30])
def test_a_negative_or_huge_alpha_is_refused_by_name(tmp_path, alpha):
    path = store(tmp_path / "x.safetensors", pair() | pair(K) | {f"{Q}.alpha": np.array(alpha)})
    with pytest.raises(LoraFileError, match=r"attn1\.to_q\.alpha") as caught:
        read_lora(path)
    assert str(path) in str(caught.value)


def test_numbers_too_large_for_float32_are_refused_by_name(tmp_path):
    path = store(tmp_path / "x.safetensors", pair(Q, A * np.float64(1e300)))
    with pytest.raises(LoraFileError, match=r"attn1\.to_q\.lora_A\.weight") as caught:
        read_lora(path)
    assert str(path) in str(caught.value)


# --- pairs that are not sound


@pytest.mark.fault(
    "LoRA files",
    "half pairs, ranks that differ, second factors, unknown keys in one file",
    "one short error that names them all, or their kinds",
)
def test_one_error_names_all_that_is_wrong(tmp_path):
    v, o = Q.replace("to_q", "to_v"), Q.replace("to_q", "to_out.0")
    tensors = {
        f"{Q}.lora_A.weight": A,  # half a pair
        f"{K}.lora_B.weight": B,  # the other half
        **pair(v, A, B[:, :1]),  # ranks differ
        **pair(o),
        f"{o}.lora.down.weight": A,  # a second A
        f"{o}.alpha": np.ones(2, np.float32),
        "lora_unet_mid_block.lokr_w1": A,  # another format
        "position_ids": A,
    }
    said = refusal(store(tmp_path / "x.safetensors", tensors))
    assert said.splitlines()[0] == "FILE: not a LoRA that can be read here:" and len(said) < 460
    every = [
        f"{Q}: half a pair, B missing",
        f"{K}: half a pair, A missing",
        f"{v}: A [2, 3] and B [4, 1] do not multiply",
        f"{o}.lora_A.weight: a second A of {o}",
        f"{o}.alpha: not one number",
        "lora_unet_mid_block: not a whole LoKr, w2_a and w2_b missing",
        "position_ids: not a key of a format that is known here",
    ]
    assert sum(each in said for each in every) >= 2 and "other kinds of fault" in said
    for left_out in list(tensors)[:-2]:  # and each of them alone
        tensors.pop(left_out)
    said = refusal(store(tmp_path / "x.safetensors", tensors))
    assert all(each in said for each in every[-2:])


@pytest.mark.fault(
    "LoRA files", "thousands of unknown keys of 300 characters", "one short reason: what kind, how many, three examples"
)
def test_thousands_of_keys_make_one_short_reason(tmp_path):
    """A reason of 34,753 characters was met: what kind of key, how many, and three examples are enough."""
    tensors = {f"{'x' * 300}.{n}.what": A for n in range(3000)} | {
        f"unet.blocks.{n}.q.lora_A.weight": A for n in range(500)
    }
    said = refusal(store(tmp_path / "x.safetensors", tensors))
    assert "and 2,99" in said and "not a key of a format that is known here" in said and len(said) < 440
    assert "half a pair, B missing" in said or "other kinds of fault" in said


def test_an_alpha_alone_is_no_update(tmp_path):
    path = store(tmp_path / "x.safetensors", pair() | {f"{K}.alpha": np.ones(1)})
    assert f"{K}: an α of no update" in refusal(path)


@pytest.mark.parametrize(("a", "b"), [((2, 3), (4, 2, 3, 3)), ((2, 3, 3, 3), (4, 3, 1, 1)), ((6,), (4, 2)), ((), ())])
def test_kernels_that_do_not_fit_are_refused(tmp_path, a, b):
    path = store(tmp_path / "x.safetensors", pair(Q, np.ones(a, np.float32), np.ones(b, np.float32)))
    assert f"{Q}: A {list(a)} and B {list(b)} do not multiply" in refusal(path)


def test_a_file_without_tensors_is_refused(tmp_path):
    assert "no tensors" in refusal(store(tmp_path / "x.safetensors", {}, {"format": "pt"}))


@pytest.mark.parametrize("alpha", [{}, {f"{Q}.alpha": np.ones(1, np.float32)}])
def test_a_rank_of_zero_is_refused_by_name(tmp_path, alpha):
    path = store(tmp_path / "x.safetensors", pair(Q, A[:0], B[:, :0]) | alpha)
    assert Q in refusal(path)


@pytest.mark.fault("LoRA files", "factors of a matrix of 40 GB", "read and compared in its factors")
def test_a_small_file_of_a_huge_module_never_becomes_the_module(tmp_path):
    side = 10**5  # ΔW would be 40 GB
    a, b = np.ones((1, side), np.float32), np.ones((side, 1), np.float32)
    path = store(tmp_path / "x.safetensors", pair(Q, a, b))
    with allocating_less_than(20 * path.stat().st_size):
        update = read_lora(path).updates[Q]
        (K_delta,) = gram([path, path], "delta").values()
    assert update.A.shape == (1, side) and (K_delta == float(side) ** 2).all()


@pytest.mark.fault("LoRA files", "a header that claims 4 TB", "refused, in less than 1 MiB")
def test_a_header_that_claims_a_huge_tensor_is_refused_and_allocates_nothing(tmp_path):
    header = {f"{Q}.lora_A.weight": entry([10**6, 10**6], 0, 4 * 10**12), f"{Q}.lora_B.weight": entry([1, 1], 0, 4)}
    with allocating_less_than(2**20):
        assert "damaged" in refusal(build(tmp_path / "x.safetensors", header, bytes(64)))


# --- pickles


class Evil:
    """Its pickle makes a folder when it is opened."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def archive(data: bytes) -> bytes:
    """What torch.save writes: a zip with the pickle inside."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", data)
    return buffer.getvalue()


@pytest.mark.fault("LoRA files", "a pickle under any name, with weights.pickles: refuse", "refused unopened")
@pytest.mark.parametrize("name", ["x.bin", "x.pt", "x.ckpt", "x.safetensors"])
def test_a_pickle_of_any_name_is_left_unopened_where_a_person_says_so(tmp_path, name):
    mark, path = tmp_path / "mark", tmp_path / name
    for protocol in (2, 3, 4, 5):
        data = pickle.dumps(Evil(mark), protocol)
        for content in (data, archive(data)):
            path.write_bytes(content)
            with pytest.raises(LoraFileError, match=r"a pickle, which weights\.pickles: refuse leaves unopened"):
                read_lora(path, pickles=False)
    path.write_bytes(pickle.dumps(Evil(mark), 0))  # text: it begins with no mark of its own
    refusal(path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Evil(mark)))  # noqa: S301
    assert mark.exists()  # the bait works


@pytest.mark.fault(
    "LoRA files", "a damaged .safetensors beside a pickle of its name", "refused as damaged; the pickle stays unopened"
)
def test_a_damaged_file_is_no_reason_to_open_the_pickle_beside_it(tmp_path):
    mark = tmp_path / "mark"
    for name in ("x.bin", "x.pt", "pytorch_lora_weights.bin"):
        (tmp_path / name).write_bytes(pickle.dumps(Evil(mark)))
    assert "damaged" in refusal(build(tmp_path / "x.safetensors", "not json"))
    assert not mark.exists()


# --- hostile names


HOSTILE = ["../../etc/passwd", "<script>alert(1)</script>", "\x1b[31mred", "a\nb", "\u202eabc", "北斎"]


@pytest.mark.fault("LoRA files", "keys with ../, <script>, escapes, line breaks", "refused as keys; no path is touched")
def test_hostile_keys_are_refused_and_touch_no_path(tmp_path):
    path = store(tmp_path / "x.safetensors", {f"{prefix}{name}": A for name in HOSTILE for prefix in ("", "unet.")})
    said = refusal(path)
    assert said.count("not a key of a format") == 1 and f"and {2 * len(HOSTILE) - 3} more" in said
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.fault("LoRA files", "keys with control characters", "the error is printable")
def test_an_error_about_hostile_keys_holds_no_control_characters(tmp_path):
    said = refusal(store(tmp_path / "x.safetensors", dict.fromkeys(HOSTILE, A)))
    assert all(line.isprintable() for line in said.splitlines())
    assert len(said.splitlines()) == 2


@pytest.mark.fault("LoRA files", "metadata with ../ and <script>", "text; no path is touched")
def test_hostile_metadata_is_text_and_nothing_more(tmp_path):
    hostile = {name: name for name in HOSTILE}
    path = store(tmp_path / "x.safetensors", pair(), hostile)
    assert read_lora(path).metadata == hostile
    write_lora(tmp_path / "y.safetensors", read_lora(path).updates, hostile)
    found = dict(read_lora(tmp_path / "y.safetensors").metadata)
    assert len(found.pop("lora_atlas.content_sha256")) == 64 and found == {"format": "pt", **hostile}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.safetensors", "y.safetensors"]


# --- containers


def test_every_half_precision_number_is_read_exactly(tmp_path):
    """Subnormal numbers, both zeros, infinities and NaN too."""
    half = np.arange(2**16, dtype=np.uint16).view(np.float16)
    for shape in ((256, 256), (2**16,)):
        path = store(tmp_path / "x.safetensors", {"x": half.reshape(shape)})
        found = open_container(path).read("x")
        assert found.dtype == np.float32 and found.shape == shape
        np.testing.assert_array_equal(found.ravel(), half.astype(np.float32))
        assert (np.signbit(found.ravel()) == np.signbit(half)).all()
    finite = np.where(np.isfinite(half), half, np.float16(0))
    path = store(tmp_path / "x.safetensors", {"x": finite, "one": np.array(-3.5, np.float16)})
    np.testing.assert_array_equal(open_container(path).read("x"), finite.astype(np.float32))
    assert open_container(path).read("one") == np.float32(-3.5)


@pytest.mark.parametrize(("name", "kind"), [("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)])
def test_eight_bit_numbers_are_read_exactly(tmp_path, name, kind):
    data = bytes(range(256))
    path = build(tmp_path / "x.safetensors", {"x": entry([16, 16], 0, 256, name)}, data)
    expected = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(kind).float().numpy().reshape(16, 16)
    np.testing.assert_array_equal(open_container(path).read("x"), expected)


@pytest.mark.parametrize("bits", [0x7FA00000, 0x7FC00000, 0xFFBFFFFF])
def test_a_nan_of_any_kind_is_refused_without_a_warning(tmp_path, bits):
    for dtype, data in (
        ("F32", np.uint32(bits).tobytes() * 6),
        ("F64", np.uint64(bits << 32 | 0x7FF << 52).tobytes() * 6),
        ("BF16", np.uint16(bits >> 16 | 1).tobytes() * 6),
        ("F16", np.uint16(0x7D01).tobytes() * 6),
    ):
        size = len(data)
        header = {f"{Q}.lora_A.weight": entry([2, 3], 0, size, dtype)}
        header |= {f"{Q}.lora_B.weight": entry([4, 2], size, size + 32)}
        with pytest.raises(NotFiniteError, match=r"lora_A\.weight"):
            read_lora(build(tmp_path / "x.safetensors", header, data + bytes(32)))


def test_an_update_that_overflows_when_its_scale_is_folded_is_refused(tmp_path):
    path = store(tmp_path / "x.safetensors", pair(Q, A, B * np.float32(1e38)) | {f"{Q}.alpha": np.array(1e5)})
    with pytest.raises(LoraFileError, match=rf"the update of {Q} is too large for float32"):
        read_lora(path)


def test_a_tensor_of_a_type_that_no_lora_has_is_refused_by_name(tmp_path):
    header = {f"{Q}.lora_A.weight": entry([2, 3], 0, 48, "C64"), f"{Q}.lora_B.weight": entry([4, 2], 48, 80)}
    assert "lora_A.weight (C64)" in refusal(build(tmp_path / "x.safetensors", header, bytes(80)))
    many = {f"{Q}.lora_A.weight": entry([1] * 9, 0, 4), f"{Q}.lora_B.weight": entry([4, 2], 4, 36)}
    assert "number of dimensions" in refusal(build(tmp_path / "x.safetensors", many, bytes(36)))


def test_entries_in_a_form_that_only_the_other_parser_accepts_are_refused(tmp_path):
    """Rust reads a struct from a list, too."""
    text = json.dumps({f"{Q}.lora_A.weight": ["F32", [2, 3], [0, 24]], f"{Q}.lora_B.weight": entry([4, 2], 24, 56)})
    assert "damaged" in refusal(build(tmp_path / "x.safetensors", text, bytes(56)))
    odd = entry([4, 2], 0, 32) | {"more": 1}
    refusal(build(tmp_path / "x.safetensors", {f"{Q}.lora_B.weight": odd}, bytes(32)))


@pytest.mark.fault("LoRA files", "a header of too many tensors", "refused before it is parsed")
def test_too_many_tensors_are_refused_before_the_header_is_parsed(tmp_path):
    header = {f"k{n}": entry([0], 0, 0) for n in range(MAX_TENSORS + 1)}
    path = build(tmp_path / "x.safetensors", header)
    with allocating_less_than(3 * path.stat().st_size):
        assert f"more than {MAX_TENSORS:,} tensors" in refusal(path)


JUNK = {
    "lists": f'{{"a":[{"[]," * 10**6}[]]}}',
    "metadata": json.dumps({"__metadata__": {str(n): "" for n in range(5 * 10**5)}}),
    "metadata, as many as there may be": json.dumps({"__metadata__": {str(n): "" for n in range(199_000)}}),
    "numbers": f'{{"a":{{"dtype":"F32","shape":[{"0," * 10**6}0],"data_offsets":[0,0]}}}}',
    "depth": '{"a":' * 10**5 + "1" + "}" * 10**5,
}  # fmt: skip


@pytest.mark.fault("LoRA files", "a header of a million lists, numbers or levels", "refused, in little memory")
@pytest.mark.parametrize("junk", sorted(JUNK))
def test_a_header_of_many_small_things_takes_little_memory(tmp_path, junk):
    """Python's lists, strings and mappings are fifty times as large as the text that names them."""
    path = build(tmp_path / "x.safetensors", JUNK[junk])
    with allocating_less_than(2 * path.stat().st_size + 64 * 2**20):
        refusal(path)


@pytest.mark.fault("LoRA files", "a file is cut, or removed, while it is read", "refused by name")
def test_a_file_that_is_cut_short_while_it_is_read_is_refused(tmp_path):
    path = store(tmp_path / "x.safetensors", pair())
    file = open_lora(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(LoraFileError, match="cut short while it was read"):
        file.update(Q)
    path.unlink()
    with pytest.raises(LoraFileError, match="cannot be read"):
        file.update(Q)


# --- pickles that are looked into


def test_a_pickle_of_tensors_is_read(tmp_path):
    tensors = {key: torch.from_numpy(x) for key, x in pair().items()}
    for name, content in (
        ("x.bin", tensors),
        ("x.ckpt", {"state_dict": tensors, "step": 3}),
        ("y.pt", tensors | {"step": 3}),
    ):
        torch.save(content, tmp_path / name)
        update = read_lora(tmp_path / name).updates[Q]
        assert (update.A == A).all() and (update.B == B).all()
    half = {key: x.bfloat16() for key, x in tensors.items()}
    torch.save(half, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    assert (read_lora(tmp_path / "x.pt").updates[Q].A == A).all()


def test_views_that_a_pickle_kept_are_read_as_they_lie(tmp_path):
    """Scripts that extract a LoRA by singular values save the first columns of a larger matrix, and its transpose."""
    U = torch.arange(24.0).reshape(4, 6)
    content = {f"{Q}.lora_A.weight": U.half().T[:2], f"{Q}.lora_B.weight": U[:, 1:3]}
    torch.save(content, tmp_path / "x.bin")
    update = read_lora(tmp_path / "x.bin").updates[Q]
    assert (U.T[:2].numpy() == update.A).all() and (U[:, 1:3].numpy() == update.B).all()
    (K_delta,) = gram([tmp_path / "x.bin"] * 2, "delta").values()
    np.testing.assert_allclose(K_delta, np.linalg.norm(update.B @ update.A) ** 2, rtol=1e-6)


def test_a_pickle_of_tensors_takes_no_memory_of_its_size(tmp_path):
    """Only places are asked for: what is not read is not loaded."""
    torch.save({f"{Q}.lora_A.weight": torch.ones(2, 3), f"{Q}.lora_B.weight": torch.ones(4, 2),
                "unet.norm.weight": torch.zeros(2**24)}, tmp_path / "x.bin")  # fmt: skip
    open_lora(tmp_path / "x.bin")  # the process is there
    with allocating_less_than(2**22):
        file = open_lora(tmp_path / "x.bin")
        assert file.layout.whole == ("unet.norm.weight",) and file.update(Q).rank == 2


@pytest.mark.fault(
    "LoRA files", "a pickle whose __reduce__ makes a folder", "refused, with what it names; the folder is not made"
)
def test_a_pickle_that_would_run_code_is_refused_with_what_it_names(tmp_path):
    mark, path = tmp_path / "mark", tmp_path / "x.bin"
    for protocol in (2, 4):
        data = pickle.dumps(Evil(mark), protocol)
        for content in (data, archive(data)):
            path.write_bytes(content)
            with pytest.raises(
                LoraFileError, match=r"x\.bin: a pickle that holds more than tensors: (posix|nt|os)\.mkdir$"
            ):
                read_lora(path)
        for content in (archive(data)[:-20], b"PK\3\4", b"\x80\2"):
            path.write_bytes(content)
            with pytest.raises(LoraFileError, match=r"x\.bin: a pickle that (is damaged|holds more than tensors)"):
                read_lora(path)
    assert not mark.exists()


@pytest.mark.fault(
    "LoRA files", "a pickle on which the process that looks into it ends", "refused; the next file is read"
)
def test_a_file_that_ends_the_process_is_refused_and_the_next_is_read(tmp_path, monkeypatch):
    """A crash, a hang or want of memory costs the process that looked into the file, and nothing else."""
    torch.save({key: torch.from_numpy(x) for key, x in pair().items()}, tmp_path / "x.bin")
    read_lora(tmp_path / "x.bin")
    monkeypatch.setattr(pickles, "SECONDS", 0)
    monkeypatch.setattr(pickles, "BYTES_PER_SECOND", 10**18)
    # It cannot answer: a quick one may, before anybody looks whether the time is up.
    pickles._READER.process.send_signal(signal.SIGSTOP)
    with pytest.raises(LoraFileError, match="for want of memory or time"):
        open_lora(tmp_path / "x.bin")
    monkeypatch.undo()
    assert (read_lora(tmp_path / "x.bin").updates[Q].A == A).all()


@pytest.mark.fault("LoRA files", "a pickle that asks for two gigabytes", "refused, within the limit of that process")
@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux'")
def test_memory_that_a_pickle_asks_for_is_limited(tmp_path):
    """bytearray is one of the few things that torch lets a pickle make: a few bytes ask for two gigabytes."""
    data = b"\x80\x02cbuiltins\nbytearray\nq\x00(J\xff\xff\xff\x7ftq\x01Rq\x02."
    with zipfile.ZipFile(tmp_path / "x.bin", "w") as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/version", b"3\n")
    with pytest.raises(LoraFileError, match=r"a pickle (that asks for more memory|on which the process)"):
        read_lora(tmp_path / "x.bin")


@pytest.mark.parametrize(
    "content",
    [{"a": 3}, {3: torch.ones(2)}, 7, [], {}, {"a": [torch.ones(1)]}, [torch.ones(2, 2), {}], {"state_dict": 1}],
)
def test_a_pickle_of_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(LoraFileError, match=r"x\.bin: a pickle that is no mapping of names to tensors"):
        read_lora(tmp_path / "x.bin")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(2, 3).to_sparse(), torch.ones(2, 3, dtype=torch.complex64), torch.empty(2, 3, device="meta"),
        torch.ones(1, 1).expand(10**6, 10**6),
    ],
)  # fmt: skip
def test_a_pickle_of_tensors_that_are_no_plain_arrays_is_refused(tmp_path, tensor):
    torch.save({f"{Q}.lora_A.weight": tensor, f"{Q}.lora_B.weight": torch.ones(4, 2)}, tmp_path / "x.bin")
    with pytest.raises(LoraFileError, match=r"x\.bin"):
        read_lora(tmp_path / "x.bin")


def test_records_that_are_packed_or_claim_more_than_they_have_are_refused(tmp_path):
    torch.save({key: torch.from_numpy(x) for key, x in pair().items()}, tmp_path / "x.bin")
    records = {}
    with zipfile.ZipFile(tmp_path / "x.bin") as whole:
        records = {name: whole.read(name) for name in whole.namelist()}
    for packed, cut in ((zipfile.ZIP_DEFLATED, 0), (zipfile.ZIP_STORED, 4)):
        with zipfile.ZipFile(tmp_path / "y.bin", "w", packed) as file:
            for name, data in records.items():
                file.writestr(name, data[: len(data) - cut * ("/data/" in name)])
        with pytest.raises(
            LoraFileError, match=r"y\.bin: a pickle (whose records are packed|whose .* is not whole|that is damaged)"
        ):
            read_lora(tmp_path / "y.bin")


# --- files of other people


def test_every_real_file_is_read_whole_and_none_is_left_out(real):
    paths = sorted(p for p in real.glob("*") if p.suffix != ".tsv")
    assert len(paths) == 12
    for path in paths:
        lora = read_lora(path)
        file = open_lora(path)
        assert list(lora.updates) == list(file.layout.specs)
        used = {key for spec in file.layout.specs.values() for key in spec.keys.values()}
        assert used | set(file.layout.tokens) == set(file.container.entries)  # nothing is passed over
        assert all(np.isfinite(expanded(u).A).all() for u in lora.updates.values())
        if path.suffix != ".safetensors":
            with pytest.raises(LoraFileError, match="a pickle, which"):
                open_lora(path, pickles=False)


def test_the_real_pickle_and_its_safetensors_twin_hold_the_same_modules(real):
    stem = "catundchat__stable-diffusion-v1.5-lora__pytorch_lora_weights"
    one, other = (open_lora(real / f"{stem}{end}") for end in (".bin", ".safetensors"))
    shapes = [{module: spec.shape for module, spec in file.layout.specs.items()} for file in (one, other)]
    assert shapes[0] == shapes[1]
