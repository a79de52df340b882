"""Why a file is refused, as a table has it."""

from pathlib import Path

import pytest

from lora_atlas.loras.reasons import in_a_row

FILE, BASE = "/home/somebody/x.safetensors", "/home/somebody/bases/sd15"


@pytest.mark.parametrize(
    ("path", "reason", "expected"),
    [
        (FILE, f"{FILE}: damaged", "damaged"),
        ("/home/somebody/peft", "/home/somebody/peft/adapter_model.bin: damaged", "damaged"),
        ("/home/somebody/peft", "/home/somebody/peft: no adapter_model.bin", "no adapter_model.bin"),
        (FILE, "there is /home/somebody/y.json, too", "there is y.json, too"),
        ("x.safetensors", "x.safetensors: see ./y and ../z", "see ./y and ../z"),
        ("/x.safetensors", "/x.safetensors: see /y", "see /y"),
        (FILE, f"{BASE}: weights.base has no weight 'a'", "weights.base has no weight 'a'"),
        (FILE, f"{BASE}/unet/model.safetensors: cut", "weights.base/unet/model.safetensors: cut"),
        (FILE, f"{FILE}:\n  one\n  two", "one · two"),
    ],
)  # fmt: skip
def test_a_row_has_the_reason_in_one_line_and_no_folder_of_anybody(path, reason, expected):
    assert in_a_row(reason, Path(path), BASE) == expected
