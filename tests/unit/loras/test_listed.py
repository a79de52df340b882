"""The list of a study's LoRAs: what stages that read all of them depend on."""

import pytest

from lora_atlas import tables
from lora_atlas.keys import Digests
from lora_atlas.loras.container import LoraFileError
from lora_atlas.loras.listed import listed, write_list


@pytest.fixture
def loras(tmp_path):
    files = {
        f"{artist}/{number:02d}": tmp_path / artist / f"{number:02d}.safetensors"
        for artist in "ab"
        for number in (0, 1)
    }
    for lora, file in files.items():
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(lora.encode())
    write_list(tmp_path / "list.parquet", files.values(), Digests(None))
    return tmp_path / "list.parquet", files


def test_files_come_back_in_their_order_wherever_the_folder_is(loras, tmp_path_factory):
    path, files = loras
    assert listed(path, Digests(None)) == {lora: str(file) for lora, file in files.items()}
    moved = tmp_path_factory.mktemp("elsewhere") / "loras"
    path.parent.rename(moved)
    assert listed(moved / path.name, Digests(None)) == {lora: str(moved / f"{lora}.safetensors") for lora in files}


def test_the_list_says_what_files_hold_and_not_where_they_are(loras):
    path, _ = loras
    rows = tables.read(path, "lora_list").to_pylist()
    # sha256sum of "a/00"
    assert rows[0] == {
        "lora": "a/00",
        "sha256": "bf08731d1898622ce3fd82b388e44fc8e02835efe773ae605e06e1ede008fe12",
        "bytes": 4,
    }
    assert str(path.parent).encode() not in path.read_bytes()


@pytest.mark.fault("tables and pages", "a LoRA that is altered or lost between two stages", "the next stage names it")
def test_files_that_are_altered_or_gone_are_named_together(loras):
    path, files = loras
    files["a/01"].write_bytes(b"a/11")
    files["b/00"].unlink()
    with pytest.raises(LoraFileError) as error:
        listed(path, Digests(None))
    assert str(error.value) == (
        f"{files['a/01']}: not the file that was listed\n{files['b/00']}: No such file or directory\n"
        "Run the same again: what differs is made anew"
    )
    for file in files.values():
        file.write_bytes(b"x")
    with pytest.raises(LoraFileError, match=r"(?s)a/00.*a/01.*b/00.*\nand 1 more\nRun the same again"):
        listed(path, Digests(None))
