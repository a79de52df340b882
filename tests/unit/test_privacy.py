"""What is handed on (LoRAs, tables, pages) says nothing of the person, the machine and the folders that made it."""

import getpass
import platform
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
from asked import FOLDER

from lora_atlas import tables
from lora_atlas.collection.inventory import inventory
from lora_atlas.diffusion.kohya import export
from lora_atlas.loras.factors import Update
from lora_atlas.loras.files import write_lora
from lora_atlas.loras.folder import find
from lora_atlas.pictures import page
from lora_atlas.pictures.decode import encode_png
from lora_atlas.pictures.sources import artists, collect

USER, HOST = "quilliam", "wrenhouse"
MODULE = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """The home of a person whose name nothing else has, on a machine of such a name."""
    folder = tmp_path / "home" / USER
    folder.mkdir(parents=True)
    for name, value in {"HOME": str(folder), "USER": USER, "LOGNAME": USER, "HOSTNAME": HOST}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)
    monkeypatch.setattr(platform, "node", lambda: HOST)
    monkeypatch.chdir(folder)
    assert getpass.getuser() == USER and Path.home() == folder
    return folder


def test_outputs_name_neither_person_nor_machine_nor_folder(home):
    rng, out = np.random.default_rng(0), home / "out"
    for n in range(3):
        (home / "art" / "monet").mkdir(parents=True, exist_ok=True)
        (home / "art" / "monet" / f"{n}.png").write_bytes(encode_png(rng.integers(0, 256, (80, 90, 3), np.uint8)))
    (home / "art" / "monet" / "bad.png").write_bytes(b"<html>")
    (home / "art" / "monet" / "gone.png").symlink_to(home / "absent.png")
    rows = collect("monet", artists(FOLDER, str(home / "art"))["monet"], FOLDER, str(home / "art"), 0)
    tables.write(out / "monet.parquet", "pictures", rows)
    tables.write(out / "duplicates.parquet", "duplicates", [])
    plan = {"gallery": [2], "query": [1]}
    page.write(out / "index.html", "mine", [out / "monet.parquet"], out / "duplicates.parquet", plan, FOLDER)

    factors = rng.normal(size=(2, 6)).astype(np.float32), rng.normal(size=(5, 2)).astype(np.float32)
    write_lora(out / "loras/a.safetensors", {MODULE: Update(MODULE, *factors)}, {"base": "a model"})
    export(out / "loras/a.safetensors", out / "loras/kohya.safetensors")
    shutil.copy(out / "loras/a.safetensors", out / "loras/copy.safetensors")
    (out / "loras/cut.safetensors").write_bytes((out / "loras/a.safetensors").read_bytes()[:-9])
    tables.write(
        out / "loras.parquet",
        "loras",
        loras := inventory(find(out / "loras"), out / "cache", numbers=6144, folder=out / "loras"),
    )

    assert [row["file"] for row in loras] == [f"{name}.safetensors" for name in ("a", "copy", "cut", "kohya")]
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".parquet", ".html", ".safetensors"} and len(files) >= 8
    refused = [row["reason"] for row in tables.read(out / "loras.parquet", "loras").to_pylist() if row["reason"]]
    assert len(refused) == 1 and sum(row["status"] == "refused" for row in rows) == 2
    for path in files:
        said = path.read_bytes()
        if path.suffix == ".parquet":  # its values are packed
            table = tables.read(path, path.stem if path.stem != "monet" else "pictures")
            said += repr((table.to_pylist(), table.schema.metadata)).encode()
        assert not [word for word in (USER, HOST, str(home.parent.parent)) if word.encode() in said], path.name
