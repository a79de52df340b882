"""Whose fault an error of the system is: no good file is refused because the machine has no room, or no descriptors."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import lora_files
import pytest
from asked import FOLDER
from safetensors import SafetensorError

from lora_atlas import machine
from lora_atlas.collection.inventory import inventory
from lora_atlas.loras.files import LoraFileError, open_lora
from lora_atlas.loras.folder import find
from lora_atlas.pictures.sources import collect

MODULE = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
AWAY = [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.ETIMEDOUT]


def lora(path: Path, seed: int = 0) -> Path:
    return lora_files.lora(path, {MODULE: (320, 320)}, seed)


@pytest.mark.parametrize("number", AWAY)
def test_what_the_machine_lacks_is_no_fault_of_a_lora(tmp_path, monkeypatch, number):
    file = lora(tmp_path / "loras/a.safetensors")

    def fail(*_, **__):
        raise OSError(number, os.strerror(number), str(file))

    monkeypatch.setattr("lora_atlas.loras.container.os.open", fail)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        open_lora(file)
    assert not isinstance(caught.value, LoraFileError)
    with pytest.raises(OSError, match=os.strerror(number)):
        inventory(find(tmp_path / "loras"), tmp_path / "cache")
    words = machine.told(caught.value)
    assert words is not None and "run the same command again" in words


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ELOOP])
def test_what_a_file_itself_lacks_is_a_row(tmp_path, monkeypatch, number):
    file = lora(tmp_path / "loras/a.safetensors")

    def fail(*_, **__):
        raise OSError(number, os.strerror(number), str(file))

    monkeypatch.setattr("lora_atlas.loras.container.os.open", fail)
    (row,) = inventory(find(tmp_path / "loras"), tmp_path / "cache")
    assert row["status"] == "refused" and os.strerror(number) in row["reason"]
    assert machine.told(OSError(number, os.strerror(number))) is None


@pytest.mark.parametrize(("number", "row"), [(errno.ESTALE, False), (errno.EACCES, True)])
def test_the_same_of_a_picture(tmp_path, monkeypatch, number, row):
    (tmp_path / "ada").mkdir()
    (tmp_path / "ada/1.png").write_bytes(b"\x89PNG")

    def fail(self):
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "read_bytes", fail)
    if row:
        assert [each["status"] for each in collect("ada", None, FOLDER, str(tmp_path), 0)] == ["refused"]
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            collect("ada", None, FOLDER, str(tmp_path), 0)


def test_a_full_disk_in_the_words_of_a_library_written_in_rust(tmp_path):
    error = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    words = machine.told(error, [tmp_path / "tables/new.parquet"])
    assert words == (
        f"no room is left on the disk of {tmp_path}; make some, and run the same command again ({os.strerror(28)})"
    )
    assert machine.told(SafetensorError("Error while deserializing header: header too small")) is None


LIMITED = """
import json, resource, sys
from pathlib import Path
allowed, paths = int(sys.argv[1]), sorted(Path(sys.argv[2]).glob("*.safetensors"))
resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))
from lora_atlas.weights.gram import gram
print(json.dumps([K.tolist() for K in gram(paths, "delta").values()]))
"""


@pytest.mark.fault(
    "LoRA files", "fewer files may be open at once than there are LoRAs", "read one by one, to the same matrices"
)
def test_a_limit_of_open_files_changes_no_matrix(tmp_path):
    """macOS allows 256 where nothing else is said."""
    for n in range(160):
        lora(tmp_path / f"{n:03d}.safetensors", n)
    environment = {**os.environ, "PYTHONPATH": str(Path(machine.__file__).parents[1])}
    found = []
    for allowed in ("1024", "128"):
        command = [sys.executable, "-c", LIMITED, allowed, str(tmp_path)]
        found.append(subprocess.run(command, env=environment, capture_output=True, text=True))
    assert [done.returncode for done in found] == [0, 0], found[1].stderr[-500:]
    assert json.loads(found[0].stdout) == json.loads(found[1].stdout)
