"""The inventory of a folder: what each file is, which are copies, and that one bad file costs no other anything."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file as save_torch

from lora_atlas import tables
from lora_atlas.collection import inventory as room
from lora_atlas.collection.inventory import inventory, told
from lora_atlas.loras.container import LoraFileError, digest
from lora_atlas.loras.folder import FolderError, Found, find, paths
from lora_atlas.weights import sketch
from lora_atlas.weights.gram import gram
from lora_atlas.weights.sketch import sketch_path

NUMBERS = 24 * 256


def seen(folder: Path, cache: Path, **options) -> dict[str, dict]:
    rows = inventory(find(folder), cache, numbers=NUMBERS, **options)
    tables.table("loras", rows)  # every column is there, and of its type
    return {row["lora"]: row for row in rows}


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "loras").mkdir()
    return tmp_path / "loras"


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


def distance(one: Path, other: Path) -> float:
    K = sum(gram([one, other], "delta").values())
    return float(np.sqrt(max(2 - 2 * K[0, 1] / np.sqrt(K[0, 0] * K[1, 1]), 0)))


# --- one file


def test_a_row_tells_what_the_file_is(make, folder, cache):
    path = make.lora(folder / "genre" / "artist" / "x.safetensors", make.sd1(), 0, rank=4)
    tensors = load_file(path)
    zero = sorted(key for key in tensors if ".lora_B." in key)[:6]
    make.store(path, tensors | {key: tensors[key] * 0 for key in zero}, {"ss_base_model_version": "sdxl_base"})
    (row,) = seen(folder, cache).values()
    K = gram([path], "delta")
    assert row["lora"] == "genre/artist/x" and (row["artist"], row["genre"]) == ("artist", "genre")
    assert row["sha256"] == digest(path) and row["bytes"] == path.stat().st_size and row["file"] == str(path)
    assert (row["format"], row["kinds"], row["ranks"], row["modules"]) == ("diffusers", ["LoRA"], [4], 24)
    assert (row["family"], row["header_family"], row["space"]) == ("SD1.x", "SDXL", "sd1")
    assert row["parameters"] == sum(x.size for x in tensors.values()) and row["tokens"] == 0
    assert row["zero_share"] == 6 / 24
    assert row["norm"] == pytest.approx(np.sqrt(sum(K.values())[0, 0]), rel=1e-6)
    for part in row["components"]:
        square = sum(M[0, 0] for (component, _), M in K.items() if component == part["component"])
        assert part["norm"] == pytest.approx(np.sqrt(square), rel=1e-6)
    assert (row["status"], row["reason"], row["copy_of"], row["relation"], row["remark"]) == ("imported", *[None] * 4)


def test_kinds_and_ranks_of_a_mixed_file_are_all_listed(make, folder, cache):
    tensors = {}
    for n, kind in enumerate(("LoCon", "LoHa", "LoKr", "full")):
        parts, _ = make.parts(kind, n, rank=n + 1)
        tensors |= {f"lora_unet_mid_block_resnets_{n % 2}_conv{1 + n // 2}.{part}": x for part, x in parts.items()}
    tensors["emb_params"] = np.ones((2, 8), np.float32)
    make.store(folder / "x.safetensors", tensors)
    (row,) = seen(folder, cache).values()
    assert row["kinds"] == ["LoCon", "LoHa", "LoKr", "full"] or row["kinds"] == ["LoHa", "LoKr", "LoRA", "full"]
    assert row["tokens"] == 1 and "1 learnt tokens" in row["remark"] and row["family"] == "other"


# --- files that cannot be used


@pytest.mark.fault("LoRA files", "an adapter whose update is zero", "refused with that reason")
def test_an_adapter_of_zeros_is_refused(make, folder, cache):
    path = make.lora(folder / "x.safetensors", make.sd1(), 0)
    make.store(path, {key: x * (".lora_A." in key) for key, x in load_file(path).items()})
    make.lora(folder / "y.safetensors", make.sd1(), 1)
    rows = seen(folder, cache)
    assert rows["x"]["status"] == "refused" and "every update is zero" in rows["x"]["reason"]
    assert rows["x"]["space"] is None and rows["x"]["zero_share"] == 1
    assert rows["y"]["status"] == "imported"


@pytest.mark.fault(
    "LoRA files",
    "eight bad files of eight kinds in a collection",
    "eight rows with their reasons; the row of the sound file is what it is alone",
)
def test_bad_files_are_rows_with_the_true_reason_and_cost_no_other_anything(make, folder, cache):
    good = make.lora(folder / "good.safetensors", make.sd1(), 0)
    alone = seen(folder, cache)["good"]
    (folder / "cut.safetensors").write_bytes(good.read_bytes()[:-100])
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "page.safetensors").write_text("<!DOCTYPE html><title>404</title>" * 20)
    tensors = load_file(good)
    key = sorted(tensors)[3]
    make.store(folder / "nan.safetensors", tensors | {key: tensors[key] * np.float32(np.nan)})
    make.store(folder / "half.safetensors", {k: x for k, x in tensors.items() if k != key})
    make.store(folder / "other.safetensors", {"model.weight": np.ones((2, 2), np.float32)})
    torch.save({k: torch.from_numpy(x) for k, x in tensors.items()}, folder / "pickle.pt")
    (folder / "peft").mkdir()
    (folder / "peft" / "adapter_config.json").write_text("{}")
    rows = seen(folder, cache, pickles=False)
    reasons = {
        "cut": "damaged", "empty": "empty, a file of no bytes", "nan": "not finite",
        "page": "text, not a LoRA file: it begins with",
        "half": "half a pair", "other": "no update of a weight: 1 whole weights (model.weight)",
        "pickle": "a pickle, which weights.pickles",
        "peft": "no such file",
    }  # fmt: skip
    assert rows.keys() == reasons.keys() | {"good"} and rows["good"] == alone
    for name, reason in reasons.items():
        row = rows[name]
        assert row["status"] == "refused" and reason in row["reason"] and row["space"] is None
        assert "\n" not in row["reason"] and str(folder) not in row["reason"]
        assert (row["sha256"] is None) == (name == "peft")
    assert key in rows["nan"]["reason"]
    allowed = seen(folder, cache)
    assert allowed["pickle"]["status"] == "imported"
    assert {allowed["pickle"]["copy_of"], allowed["good"]["copy_of"]} <= {None, "good", "pickle"}


def test_a_file_that_cannot_be_opened_at_all_is_refused(make, folder, cache, monkeypatch):
    path = make.lora(folder / "x.safetensors", make.sd1(), 0)
    make.lora(folder / "y.safetensors", make.sd1(), 1)

    def locked(wanted):
        if Path(wanted) == path:
            raise LoraFileError(f"{wanted}: cannot be read (Permission denied)")
        return digest(wanted)

    monkeypatch.setattr(room, "digest", locked)
    rows = seen(folder, cache)
    assert (rows["x"]["status"], rows["x"]["reason"]) == ("refused", "cannot be read (Permission denied)")
    assert rows["y"]["status"] == "imported"


# --- copies


def test_copies_of_every_kind_are_found_and_named(make, folder, cache):
    path = make.lora(folder / "a.safetensors", make.sd1(), 0, rank=4)
    tensors = load_file(path)
    shutil.copy(path, folder / "b-same.safetensors")
    make.store(folder / "c-kohya.safetensors", make.kohya(tensors, alpha=True))
    make.store(folder / "d-fp16.safetensors", {k: x.astype(np.float16) for k, x in tensors.items()})
    save_torch({k: torch.from_numpy(x).bfloat16() for k, x in tensors.items()}, folder / "e-bf16.safetensors")
    for name, factor in (("f-half", 0.5), ("g-minus", -1.0), ("h-hundredth", 0.01)):
        make.store(
            folder / f"{name}.safetensors",
            {k: x * np.float32(factor if ".lora_B." in k else 1) for k, x in tensors.items()},
        )
    turned, rng = {}, np.random.default_rng(0)
    for module in make.sd1():
        M = rng.normal(size=(4, 4)) + 4 * np.eye(4)
        turned[f"{module}.lora_A.weight"] = (np.linalg.inv(M) @ tensors[f"{module}.lora_A.weight"]).astype(np.float32)
        turned[f"{module}.lora_B.weight"] = (tensors[f"{module}.lora_B.weight"] @ M).astype(np.float32)
    make.store(folder / "i-turned.safetensors", turned)
    near = {k: x + np.float32(0.02) * rng.normal(size=x.shape).astype(np.float32) for k, x in tensors.items()}
    make.store(folder / "j-near.safetensors", near)
    make.lora(folder / "k-other.safetensors", make.sd1(), 1, rank=4)
    rows = seen(folder, cache)
    assert {name: row["relation"] for name, row in rows.items()} == {
        "a": None, "b-same": "same bytes", "c-kohya": "same update", "d-fp16": "same update", "e-bf16": "same update",
        "f-half": "same update × 0.5", "g-minus": "same update × -1", "h-hundredth": "same update × 0.01",
        "i-turned": "same update", "j-near": "nearly the same", "k-other": None,
    }  # fmt: skip
    # Each is named after the nearest before it, and halves of float32 are float32 again.
    assert {name: row["copy_of"] for name, row in rows.items() if row["relation"]} == {
        "b-same": "a", "c-kohya": "a", "d-fp16": "a", "e-bf16": "a", "f-half": "a", "g-minus": "a",
        "h-hundredth": "a", "i-turned": "a", "j-near": "a",
    }  # fmt: skip
    for twin in ("c-kohya", "i-turned", "d-fp16"):
        assert distance(path, folder / f"{twin}.safetensors") < 1e-3
    assert all(row["status"] == "imported" and row["space"] == "sd1" for row in rows.values())


def test_a_peft_folder_is_its_tensors_and_its_configuration(make, folder, cache):
    """The same tensors with another α are another update."""
    modules = {m.replace("unet.", "base_model.model."): shape for m, shape in make.sd1().items()}
    for name, alpha in (("a", 2), ("b", 8), ("c", 2)):
        make.lora(folder / name / "adapter_model.safetensors", modules, 0)
        (folder / name / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": alpha}))
    rows = seen(folder, cache)
    assert rows["b"]["norm"] == pytest.approx(4 * rows["a"]["norm"], rel=1e-6)
    assert (rows["b"]["copy_of"], rows["b"]["relation"]) == ("a", "same update × 4")
    assert (rows["c"]["copy_of"], rows["c"]["relation"]) == ("a", "same bytes")
    before = rows["a"]["norm"]
    (folder / "a" / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 6}))
    assert seen(folder, cache)["a"]["norm"] == pytest.approx(3 * before, rel=1e-6)
    K = sum(gram([folder / "a", folder / "b"], "delta", cache=folder / "g").values())
    assert K[1, 1] / K[0, 0] == pytest.approx((8 / 6) ** 2, rel=1e-6)


def test_checkpoints_of_one_run_are_nearer_each_other_than_anything_else(make, tmp_path):
    """Two simulated trainings: B grows from zero along a drifting direction, A stays near its start."""
    paths = {}
    for run in range(3):
        rng = np.random.default_rng(run)
        A = {m: rng.normal(size=(4, s[1])) for m, s in make.sd1().items()}
        B = {m: np.zeros((s[0], 4)) for m, s in make.sd1().items()}
        aim = {m: rng.normal(size=(s[0], 4)) for m, s in make.sd1().items()}
        for step in range(1, 7):
            tensors = {}
            for m in B:
                B[m] += 0.1 * aim[m] + 0.15 * rng.normal(size=B[m].shape)
                A[m] += 0.02 * rng.normal(size=A[m].shape)
                tensors |= {
                    f"{m}.lora_A.weight": A[m].astype(np.float32),
                    f"{m}.lora_B.weight": B[m].astype(np.float32),
                }
            if step > 2:
                paths[run, step] = make.store(tmp_path / f"{run}-{step}.safetensors", tensors)
    K = sum(gram(list(paths.values()), "delta").values())
    cos = K / np.sqrt(np.outer(np.diag(K), np.diag(K)))
    run = np.array([key[0] for key in paths])
    same = run[:, None] == run
    assert cos[same].min() > 0.5 > cos[~same].max() + 0.3
    step = np.array([key[1] for key in paths])
    for r in range(3):  # and neighbours in time are nearest
        among = cos[np.ix_(run == r, run == r)] - 2 * np.eye(4)
        assert (np.abs(step[run == r][among.argmax(1)] - step[run == r]) == 1).all()


def test_checkpoints_that_hardly_differ_are_no_copies_and_a_copy_is_named_after_the_nearest(make, folder, cache):
    """At the end of a training 500 steps made a distance of 2.8e-3, ten times what rounding to float16 does."""
    tensors = load_file(make.lora(folder / "500.safetensors", make.sd1(), 0, rank=4))
    make.store(folder / "500.safetensors", {k: x.astype(np.float16) for k, x in tensors.items()})
    rng = np.random.default_rng(1)
    for name in ("501", "502"):
        spread = {k: np.float32(2e-3 * x.std()) for k, x in tensors.items()}
        tensors = {k: x + spread[k] * rng.normal(size=x.shape).astype(np.float32) for k, x in tensors.items()}
        make.store(folder / f"{name}.safetensors", {k: x.astype(np.float16) for k, x in tensors.items()})
        make.store(folder / f"{name}-kohya.safetensors", make.kohya(tensors, alpha=True))
    assert distance(folder / "500.safetensors", folder / "501.safetensors") == pytest.approx(2.8e-3, rel=0.1)
    rows = seen(folder, cache)
    assert {name: (row["copy_of"], row["relation"]) for name, row in rows.items()} == {
        "500": (None, None), "501": ("500", "nearly the same"), "501-kohya": ("501", "same update"),
        "502": ("501-kohya", "nearly the same"), "502-kohya": ("502", "same update"),
    } or rows["502"]["copy_of"] == "501"  # fmt: skip


def test_a_remark_is_for_the_few_that_differ(make, folder, cache):
    text = {"text_encoder.text_model.encoder.layers.0.self_attn.q_proj": (768, 768)}
    for n in range(4):
        make.lora(folder / f"{n}.safetensors", make.sd1(), n)
    make.lora(folder / "more.safetensors", make.sd1() | text, 4)
    make.lora(folder / "less.safetensors", dict(list(make.sd1().items())[2:]), 5)
    remarks = {name: row["remark"] for name, row in seen(folder, cache).items() if row["remark"]}
    assert remarks == {
        "more": "changes 1 modules that most LoRAs of its space leave alone; a module that is absent counts as zero",
        "less": "lacks 2 of the 24 modules that most LoRAs of its space change; a module that is absent counts as zero",
    }


# --- spaces


def test_families_and_shapes_that_disagree_never_share_a_space(make, folder, cache):
    make.lora(folder / "a.safetensors", make.sd1(), 0)
    xl = {f"unet.down_blocks.1.attentions.0.transformer_blocks.{n}.attn2.to_k": (640, 2048) for n in (0, 1)}
    make.lora(folder / "b.safetensors", xl, 0)
    make.lora(folder / "c.safetensors", make.sd1(), 1)
    flux = {"transformer.single_transformer_blocks.0.attn.to_q": (3072, 3072)}
    make.lora(folder / "d.safetensors", flux, 0, rank=1)
    inpainting = {**make.sd1(), "unet.conv_in": (320, 81)}
    make.lora(folder / "e.safetensors", {**make.sd1(), "unet.conv_in": (320, 36)}, 2)
    make.lora(folder / "f.safetensors", inpainting, 3)
    text = {"text_encoder.text_model.encoder.layers.0.self_attn.q_proj": (768, 768)}
    make.lora(folder / "g.safetensors", text, 0)
    make.lora(folder / "h.safetensors", {"unet.conv_in": (7, 9)}, 0)
    rows = seen(folder, cache)
    assert {name: row["space"] for name, row in rows.items()} == {
        "a": "sd1", "b": "sdxl", "c": "sd1", "d": "flux", "e": "sd1", "f": "sd1-2", "g": "other-1", "h": "other-2",
    }  # fmt: skip
    for row in rows.values():
        assert row["status"] == "imported" and row["copy_of"] is None


def test_files_of_disjoint_modules_of_one_family_share_its_space(make, folder, cache):
    one = {m: s for m, s in make.sd1().items() if "attn2.to_k" in m}
    other = {m: s for m, s in make.sd1().items() if "attn2.to_v" in m}
    make.lora(folder / "a.safetensors", one, 0)
    make.lora(folder / "b.safetensors", other, 0)
    assert {row["space"] for row in seen(folder, cache).values()} == {"sd1"}


# --- again


def test_the_second_pass_reads_no_tensor_and_says_the_same(make, folder, cache, monkeypatch, tmp_path):
    for n in range(3):
        make.lora(folder / f"{n}.safetensors", make.sd1(), n)
    shutil.copy(folder / "0.safetensors", folder / "3.safetensors")
    read, count = sketch.read_alike, []
    monkeypatch.setattr(sketch, "read_alike", lambda file, names, *a: count.extend(names) or read(file, names, *a))
    first = inventory(find(folder), cache, numbers=NUMBERS)
    assert len(count) == 3 * len(make.sd1())  # three different files, every module once
    count.clear()
    second = inventory(find(folder), cache, numbers=NUMBERS)
    assert not count and first == second
    make.lora(folder / "9.safetensors", make.sd1(), 9)
    third = inventory(find(folder), cache, numbers=NUMBERS)
    assert len(count) == len(make.sd1()) and third[:4] == first
    for name, rows in (("a", first), ("b", second)):
        tables.write(tmp_path / name, "loras", rows)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    tables.write(tmp_path / "b", "loras", inventory(find(folder), tmp_path / "fresh", numbers=NUMBERS)[:4])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.fault("caches", "a kept sketch that is empty, junk or cut", "said, and made again")
def test_a_damaged_sketch_is_made_anew(make, folder, cache, capsys):
    path = make.lora(folder / "x.safetensors", make.sd1(), 0)
    rows = seen(folder, cache)
    kept = sketch_path(cache, digest(path), NUMBERS)
    for content in (b"", b"junk", kept.read_bytes()[:-8]):
        kept.write_bytes(content)
        assert seen(folder, cache) == rows
        assert "made again" in capsys.readouterr().out


# --- folders


def test_folders_are_labels(make, folder):
    for name in ("x", "Ada/one", "still life/Ada/two", "deep/er/portrait/Bob/three"):
        make.lora(folder / f"{name}.safetensors", {"unet.conv_in": (2, 2)}, 0)
    assert {f.lora: (f.artist, f.genre) for f in find(folder)} == {
        "x": (None, None), "Ada/one": ("Ada", None), "still life/Ada/two": ("Ada", "still life"),
        "deep/er/portrait/Bob/three": ("Bob", "portrait"),
    }  # fmt: skip


@pytest.mark.fault(
    "LoRA files",
    "names of files with line breaks, escapes, <script> or no UTF-8",
    "printable labels; caches are under hashes",
)
def test_names_that_are_hostile_are_printable_and_touch_no_path(make, folder, cache):
    hostile = ["a\nb", "\x1b[31mred", "\u202eabc", "<script>alert(1)<", "北斎 波", "..x", "a'b\"c", "%2e%2e"]
    for n, name in enumerate(hostile):
        make.lora(folder / f"h{name}" / f"h{name}.safetensors", {"unet.conv_in": (2, 2)}, n)
    broken = os.fsencode(folder) + b"/\xff\xfe.safetensors"
    shutil.copy(find(folder)[0].path, broken)
    rows = seen(folder, cache)
    assert len(rows) == len(hostile) + 1 and all(row["status"] == "imported" for row in rows.values())
    for row in rows.values():
        for text in (row["lora"], row["file"], row["artist"] or ""):
            assert text.isprintable() and text.encode() is not None
    assert {path.suffix for path in cache.iterdir()} == {".safetensors"}
    assert sorted(p.name for p in cache.parent.iterdir()) == ["cache", "loras"]


def test_a_file_is_found_by_the_name_that_is_shown(make, folder, cache):
    names = ["plain", "style\u3000anime", "a\u00a0b", "soft\u00adhyphen", "line\nbreak", os.fsdecode(b"latin\xe9")]
    kept = [make.lora(folder / "Ada\u3000L" / f"{name}.safetensors", make.sd1(), n) for n, name in enumerate(names)]
    shown = [row["file"] for row in inventory(find(folder), cache, numbers=NUMBERS, folder=folder)]
    assert not any(path.exists() for path in (Path(folder, name) for name in shown)) and all(
        map(str.isprintable, shown)
    )
    assert sorted(paths(folder, shown)) == sorted(kept)
    assert paths(folder, ["gone.safetensors"]) == [folder / "gone.safetensors"]


def test_results_of_this_project_are_no_loras(make, folder):
    """Somebody maps the folder that he is in."""
    make.lora(folder / "a.safetensors", make.sd1(), 0)
    for study, mark in (("loras", ".folder"), ("demo", "plan.parquet")):
        (folder / "results" / study).mkdir(parents=True)
        (folder / "results" / study / mark).touch()
        make.lora(folder / "results" / study / "loras/ada/00.safetensors", make.sd1(), 1)
    assert [found.lora for found in find(folder)] == ["a"]
    assert [found.lora for found in find(folder / "results/demo/loras")] == ["ada/00"]
    assert [found.lora for found in find(folder / "results/demo")] == ["loras/ada/00"]  # by its own name


def test_a_long_reason_keeps_its_end_where_the_remedy_is(capsys):
    row = dict.fromkeys(tables.SCHEMAS["loras"].names) | {"lora": "x", "status": "refused"}
    said = told([row | {"reason": f"cannot: {'k' * 900}; name the base in weights.base"}])
    assert "cannot: kkk" in said and said.rstrip().endswith("name the base in weights.base") and len(said) < 600


def test_a_reason_says_nothing_of_where_files_are_kept(make, folder, cache):
    peft = folder / "adapter"
    make.lora(peft / "adapter_model.safetensors", make.sd1(), 0)
    (peft / "adapter_config.json").write_text("{")
    (row,) = seen(folder, cache).values()
    assert row["status"] == "refused" and "adapter_config.json: not a configuration of PEFT" in row["reason"]
    assert str(folder) not in row["reason"]


def test_candidates_of_one_name_are_told_apart_and_hidden_ones_passed_over(make, folder):
    for name in ("x.safetensors", "x.pt", ".hidden.safetensors", "@eaDir/x.safetensors", "__MACOSX/x.safetensors"):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    (folder / "notes.txt").write_text("")
    (folder / "y.SAFETENSORS").write_bytes(b"")
    found = find(folder)
    assert sorted(f.lora for f in found) == ["x.pt", "x.safetensors", "y"] and len({f.lora for f in found}) == 3


def names(folder) -> set[str]:
    return {found.lora for found in find(folder)}


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


@pytest.mark.fault(
    "LoRA files", "links to a folder above, or to nothing", "each folder is entered once; a dead link is a row"
)
def test_links_are_followed_and_each_folder_is_entered_once(folder, tmp_path):
    """yanokusnir-ai/one-node-flux-2-klein#20: LoRAs on another drive. A link upwards ends where it began."""
    other = tmp_path / "drive"
    touch(folder / "here/one.safetensors", other / "two.safetensors", other / "deep/three.safetensors")
    (folder / "linked").symlink_to(other)
    (folder / "again").symlink_to(other)
    (folder / "here/up").symlink_to(folder)
    (folder / "single.safetensors").symlink_to(other / "two.safetensors")
    (folder / "gone.safetensors").symlink_to(tmp_path / "absent.safetensors")
    assert names(folder) == {"here/one", "again/two", "again/deep/three", "single", "gone"}


def test_handles_of_artists_are_names(folder):
    """willmiao/ComfyUI-Lora-Manager#12: @ and __ begin what people call their files."""
    touch(folder / "@handle/four.safetensors", folder / "@style.safetensors", folder / "__style__.safetensors")
    touch(folder / "@eaDir/x.safetensors", folder / "a/__MACOSX/x.safetensors", folder / ".git/x.safetensors")
    assert names(folder) == {"@handle/four", "@style", "__style__"}


def test_what_lies_in_and_below_an_adapter_s_folder_is_found(folder):
    """h2oai/h2ogpt#195: checkpoints of a run below it, with the trainer's state; another LoRA beside it;
    ml-explore/mlx-examples#636: MLX's file."""
    for run in ("run", "run/checkpoint-69", "beside", "bare", "pickled"):
        touch(folder / run / "adapter_config.json")
    touch(*(folder / run / "adapter_model.safetensors" for run in ("run", "run/checkpoint-69", "beside")))
    touch(folder / "pickled/adapter_model.bin", folder / "beside/kohya.safetensors", folder / "run/optimizer.pt")
    touch(folder / "mlx/adapter_config.json", folder / "mlx/adapters.safetensors")
    assert names(folder) == {
        "run", "run/checkpoint-69", "beside", "beside/kohya", "bare", "pickled", "mlx/adapters",
    }  # fmt: skip
    labels = {found.lora: (found.genre, found.artist) for found in find(folder)}
    assert labels["run/checkpoint-69"] == (None, "run") and labels["run"] == (None, None)


def test_a_folder_without_loras_is_refused_with_what_was_expected(folder, tmp_path):
    with pytest.raises(FolderError, match=r"no LoRA files in it; looked for \.safetensors"):
        find(folder)
    with pytest.raises(FolderError, match="is absent; expected a folder"):
        find(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="is not a folder"):
        find(tmp_path / "file")


def test_real_files_and_their_copies(real, cache):
    rows = inventory(find(real), cache, numbers=10**5)
    assert len(rows) == 12 and all(row["status"] == "imported" for row in rows), [row["reason"] for row in rows]
    assert {row["family"] for row in rows} >= {"SD1.x", "SD2.x"}
    spaces = {row["space"] for row in rows}
    assert all(len({row["family"] for row in rows if row["space"] == space}) == 1 for space in spaces)
    refused = [row for row in inventory(find(real), cache, numbers=10**5, pickles=False) if row["status"] == "refused"]
    assert sorted(Path(row["file"]).suffix for row in refused) == [".bin", ".pt"]


def refused(lora: str, reason: str) -> dict:
    return {"lora": lora, "status": "refused", "reason": reason, "space": None, "family": None, "copy_of": None}


def test_alike_refusals_and_copies_are_one_line(capsys):
    long = "not a LoRA that can be read here: {key}: not a key of a format that is known here"
    rows = [refused(f"set/{n}", long.format(key=f"blocks.{n}.lora_Q{n}.weight")) for n in range(100)]
    rows += [refused("cut", "damaged (its header claims 12 bytes)"), refused("gone", "no such file")]
    usable = {"status": "imported", "space": "sd1", "family": "SD1.x", "reason": None}
    rows += [usable | {"lora": "a", "copy_of": None, "relation": None}]
    rows += [usable | {"lora": f"b{n}", "copy_of": "a", "relation": "same update"} for n in range(9)]
    lines = told(rows).splitlines()
    assert lines[0] == "112 LoRA files: 10 imported, 102 refused" and len(lines) == 6
    assert lines[2] == "  b0, b1, b2 and 6 more: same update as a"
    assert lines[3].startswith("  refused 100, set/0, set/1, set/2 and 97 more; set/0: not a LoRA") and "Q0" in lines[3]
    assert "refused cut: damaged" in lines[4] and "refused gone: no such file" in lines[5]
    many = [refused(f"x{n}", "a" * (n + 1)) for n in range(99)]
    assert len(told(many).splitlines()) == 26 and "75 more lines of refusals" in told(many)


def test_found_needs_no_folder(make, tmp_path, cache):
    path = make.lora(tmp_path / "x.safetensors", make.sd1(), 0)
    (row,) = inventory([Found("anything", path, "A", None)], cache, numbers=NUMBERS)
    assert (row["lora"], row["artist"], row["status"]) == ("anything", "A", "imported")


def test_what_stands_beside_an_update_is_a_remark(make, folder, cache):
    """Whole layers, and adapters whose scale PEFT's configuration would say; not where the kind has none."""
    path = make.lora(folder / "x.safetensors", make.sd1(), 0)
    make.store(path, load_file(path) | {"score.weight": np.ones((2, 2), np.float32)})
    kernel = {"base_model.model.mid_block.attentions.0.proj_in.c3a_kernel": np.ones((3, 2, 8), np.float32)}
    make.store(folder / "y.safetensors", kernel)
    rows = seen(folder, cache)
    assert "holds 1 whole tensors besides, which are left out: score.weight" in rows["x"]["remark"]
    assert rows["y"]["kinds"] == ["C3A"] and "adapter_config.json" not in (rows["y"]["remark"] or "")


@pytest.mark.parametrize("weights", ["absent", "cut"])
def test_a_refusal_for_the_base_does_not_say_where_the_base_is_kept(make, folder, cache, tmp_path, weights):
    """Tables are handed on; the folder of the base is its owner's."""
    modules = make.sd1()
    tensors = load_file(make.lora(folder / "x.safetensors", modules, 0))
    scales = {
        key.replace(".lora_B.weight", ".lora_magnitude_vector"): np.ones(x.shape[0], np.float32)
        for key, x in tensors.items()
        if ".lora_B." in key
    }
    make.store(folder / "x.safetensors", tensors | scales)
    base = tmp_path / "of a person"
    (base / "unet").mkdir(parents=True)
    kept = make.store(
        base / "unet/diffusion_pytorch_model.safetensors", {"conv_in.weight": np.ones((4, 4), np.float32)}
    )
    if weights == "cut":
        kept.write_bytes(kept.read_bytes()[:-8])
    (row,) = seen(folder, cache, base=str(base)).values()
    assert row["status"] == "refused" and "weights.base" in row["reason"]
    assert ("damaged" in row["reason"]) == (weights == "cut")
    assert "of a person" not in row["reason"] and str(tmp_path) not in row["reason"]
