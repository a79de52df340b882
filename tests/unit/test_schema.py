"""The schema of the configuration: names stand in the library's registries, and nowhere twice."""

import re
from pathlib import Path

import pytest

from lora_atlas import schema
from lora_atlas.diffusion.targets import TARGETS
from lora_atlas.embeddings.describe import WEIGHT_CONTROLS
from lora_atlas.weights.gram import KERNELS


def enums(found, place=""):
    if isinstance(found, dict):
        if "enum" in found:
            yield place, found["enum"]
        for key, value in found.items():
            yield from enums(value, f"{place}.{key}")
    elif isinstance(found, list):
        for value in found:
            yield from enums(value, place)


def test_names_are_those_of_the_registries():
    found = schema.read()["properties"]
    weights = found["weights"]["properties"]
    assert weights["kernels"]["items"]["enum"] == list(KERNELS)
    assert weights["controls"]["items"]["enum"] == list(WEIGHT_CONTROLS)
    assert found["training"]["properties"]["targets"]["items"]["enum"] == list(TARGETS)
    assert found["evaluation"]["properties"]["distance"]["enum"] == ["L2", "cosine", "CSLS"]


def test_every_registry_is_used_and_no_list_of_its_names_stands_in_the_file():
    text = Path(schema.SCHEMA).read_text()
    assert set(re.findall(r"registry: (\w+)", text)) - {"NAME"} == set(schema.REGISTRIES)
    lists = [set(re.split(r",\s*", each)) for each in re.findall(r"enum: \[([^\]]*)\]", text)]
    for name, names in schema.REGISTRIES.items():
        assert set(names) not in lists, name


def test_a_kernel_that_is_added_can_be_asked_for(monkeypatch):
    monkeypatch.setitem(schema.REGISTRIES, "kernels", [*KERNELS, "delta2"])
    assert "delta2" in schema.read()["properties"]["weights"]["properties"]["kernels"]["items"]["enum"]


def test_a_registry_that_does_not_exist_is_an_error(tmp_path):
    (tmp_path / "schema.yaml").write_text("properties: {a: {registry: nonesuch}}")
    with pytest.raises(KeyError, match="nonesuch"):
        schema.read(tmp_path / "schema.yaml")
    assert all(values for _, values in enums(schema.read()))
