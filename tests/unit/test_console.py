"""The command lora-atlas: what it stands for, and what it says of what is not there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from snakemake.cli import parse_config

from lora_atlas import console
from lora_atlas.console import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def told(monkeypatch, tmp_path):
    """Arguments → the command that would be run, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def ask(*arguments: str) -> list[str]:
        ran = []
        assert main(arguments, lambda made: ran.append(made) or 0) == 0
        return ran[0]

    return ask


def settings(made: list[str]) -> dict:
    """What Snakemake itself makes of --config."""
    begin = made.index("--config") + 1
    end = made.index("--") if "--" in made[begin:] else len(made)
    return dict(parse_config(made[begin:end]))


@pytest.mark.parametrize("name", ["loras", "2024", "2024_11", "my loras #2", "{braces}", "a=b", "北斎", "null"])
def test_a_folder_is_itself_whatever_it_is_called(told, tmp_path, name):
    (tmp_path / name).mkdir()
    made = told("map", name)
    assert settings(made)["folder"] == str(tmp_path / name)
    assert made[:3] == ["snakemake", "-s", str(ROOT / "Snakefile")]
    assert made[made.index("--configfile") + 1] == str(ROOT / "workflow/studies/my_loras.yaml")
    schema = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text())
    import re

    assert re.search(schema["properties"]["study"]["pattern"], settings(made)["study"])


def test_a_file_is_asked_about_in_its_own_folder_or_another(told, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/new.safetensors").touch()
    (tmp_path / "others").mkdir()
    own, other = told("query", "mine/new.safetensors"), told("query", "mine/new.safetensors", "others")
    assert settings(own)["folder"] == str(tmp_path / "mine") and own[-2:] == ["--", "query"]
    assert settings(other)["folder"] == str(tmp_path / "others")
    assert settings(other)["query"] == str(tmp_path / "mine/new.safetensors")


def test_pictures_are_asked_about_with_their_base(told, tmp_path):
    for name in ("pictures", "loras", "sd15"):
        (tmp_path / name).mkdir()
    found = told("find", "pictures", "loras", "--base", "sd15", "--cores", "3")
    assert found[-2:] == ["--", "attribute"] and found[found.index("--cores") + 1] == "3"
    assert settings(found)["base"] == {"model": str(tmp_path / "sd15")}
    made = told("one-step", "pictures", "--base", "somebody/base", "--revision", "0" * 40)
    assert made[-2:] == ["--", "one_step"] and "--configfile" not in made
    assert settings(made)["base"] == {"model": "somebody/base", "revision": "0" * 40}


def test_studies_by_name_and_by_file(told, tmp_path):
    (tmp_path / "own.yaml").write_text("study: own")
    assert told("estimate", "designers")[-2:] == ["--", "estimate"]
    made = told("run", "own.yaml", "--", "-n", "tables")
    assert made[made.index("--configfile") + 1] == str(tmp_path / "own.yaml")
    assert made[5:7] == ["-n", "tables"] and "--config" not in made


def test_the_demo_ends_with_what_it_found(told, monkeypatch):
    said = []
    monkeypatch.setattr("lora_atlas.summary.main", said.append)
    assert "--configfile" not in told("demo")
    assert said == [["results/demo"]]
    told("demo", "--", "-n")
    assert len(said) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["map", "absent"], "absent: there is no such file or folder; it was looked for at {}/absent"),
        (["map", "~/no such folder"], "no such file or folder; it was looked for at {home}/no such folder"),
        (["run", "artbench"], "artbench: no study of that name, and no file at {}/artbench; there are: artbench_flux"),
        (["find", "here"], "find: name the folder of LoRA files, too: lora-atlas find WHAT FOLDER"),
        (["query", "here"], "query: name the folder of LoRA files, too"),
    ],
)
def test_what_is_not_there_is_said(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert main(arguments, lambda made: pytest.fail("ran")) == 2
    assert words.format(tmp_path, home=Path.home()) in capsys.readouterr().err


def test_the_command_is_printed_and_its_status_handed_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my loras").mkdir()
    assert main(["map", "my loras"], lambda made: 3) == 3
    printed = capsys.readouterr().err.strip()
    import shlex

    assert settings(shlex.split(printed))["folder"] == str(tmp_path / "my loras")


def test_without_a_workflow_the_way_to_install_it_is_said(monkeypatch, capsys):
    monkeypatch.setattr(console, "PROJECT", Path("/nowhere"))
    assert main(["demo"], lambda made: 0) == 2
    assert "install LoRA Atlas from its repository: pip install ." in capsys.readouterr().err


def test_help_names_every_action():
    done = subprocess.run(
        [sys.executable, "-m", "lora_atlas.console", "--help"], capture_output=True, text=True, cwd=ROOT / "workflow"
    )
    assert done.returncode == 0
    assert all(f"lora-atlas {name}" in done.stdout for name in ("map", "query", "find", "one-step", "run", "estimate"))
    assert json.dumps(done.stdout)  # and can be printed
