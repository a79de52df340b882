"""The command lora-atlas: what it stands for, and what it says of what is not there."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from snakemake.cli import parse_config

from lora_atlas import console, origin, tables
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
    assert made[3:7] == ["--quiet", "rules", "host", "reason"]
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
    mini = told("find", "pictures", "loras", "--base", "mini")
    assert settings(mini)["base"] == {"model": str(ROOT / "workflow/resources/mini/base")}
    stated = told("find", "pictures", "loras", "--", "--config", "base={model: sd15}")
    assert settings(stated)["base"] == {"model": "sd15"}


def test_what_is_said_after_the_dashes_joins_what_the_command_says(told, tmp_path):
    """Snakemake takes the last --config, and the last --configfile, alone."""
    (tmp_path / "loras").mkdir()
    (tmp_path / "own.yaml").write_text("study: own")
    rest = ["--config", "weights={modules: [plain]}", "seed=3", "-k", "--configfile=own.yaml", "-C", "cache=x", "all"]
    made = told("map", "loras", "--", *rest)
    assert made.count("--config") == made.count("--configfile") == 1 and "-k" in made and "-C" not in made
    found = settings(made)
    assert found["folder"] == str(tmp_path / "loras") and found["seed"] == 3 and found["cache"] == "x"
    assert found["weights"] == {"modules": ["plain"]}
    configs = made[made.index("--configfile") + 1 : made.index("--config")]
    assert configs == [str(ROOT / "workflow/studies/my_loras.yaml"), "own.yaml"]
    # What is to be printed is said by whoever says so.
    assert "--quiet" not in told("map", "loras", "--", "-n")


def test_two_folders_of_one_name_have_results_of_their_own(told, tmp_path):
    for place in ("one", "other"):
        (tmp_path / place / "loras").mkdir(parents=True)
    assert settings(told("map", "one/loras"))["study"] == "loras"
    origin.keep("results/loras", "one/loras")
    assert settings(told("map", "one/loras"))["study"] == "loras"
    assert settings(told("map", "other/loras"))["study"] == "loras_2"
    origin.keep("results/loras_2", "other/loras")
    assert settings(told("map", "other/loras"))["study"] == "loras_2"
    # Nor do they go into those of a study that trained its own.
    (tmp_path / "one/painters").mkdir()
    (tmp_path / "results/painters").mkdir()
    (tmp_path / "results/painters/plan.parquet").touch()
    assert settings(told("map", "one/painters"))["study"] == "painters_2"
    assert str(tmp_path) not in (tmp_path / "results/loras/.folder").read_text()


def test_a_study_is_asked_by_its_configuration(told, tmp_path, capsys):
    (tmp_path / "new.safetensors").touch()
    (tmp_path / "own.yaml").write_text("study: own")
    for study in ("painters", "own.yaml"):
        made = told("query", "new.safetensors", study, "--", "--config", "folder=art")
        expected = ROOT / "workflow/studies/painters.yaml" if study == "painters" else tmp_path / study
        assert made[made.index("--configfile") + 1] == str(expected)
        assert settings(made) == {"query": str(tmp_path / "new.safetensors"), "folder": "art"}
    (tmp_path / "results/own").mkdir(parents=True)
    (tmp_path / "results/own/plan.parquet").touch()
    assert main(["query", "new.safetensors", "results/own"], lambda made: pytest.fail("ran")) == 2
    assert "the results of a study that trained its LoRAs" in capsys.readouterr().err


def test_where_nothing_was_to_be_done_the_page_is_named_all_the_same(told, tmp_path, capsys):
    (tmp_path / "loras").mkdir()
    page = tmp_path / "results/loras/atlas.html"
    page.parent.mkdir(parents=True)
    page.touch()
    os.utime(page, (1, 1))
    (page.parent / "tables").mkdir()
    tables.write(page.parent / "tables/loras.parquet", "loras", [])
    told("map", "loras")
    said = capsys.readouterr().err
    assert f"The page to open: {page}" in said and "0 LoRA files" in said
    (tmp_path / "own.yaml").write_text("study: loras")
    told("run", "own.yaml")
    assert f"The page to open: {page}" in capsys.readouterr().err
    for nothing_made in ("-n", "--unlock"):
        told("run", "own.yaml", "--", nothing_made)
        assert "The page" not in capsys.readouterr().err


@pytest.mark.fault(
    "LoRA files", "two files of one name are asked about, one after the other", "two answers, neither over the other"
)
def test_two_files_of_one_name_have_answers_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results, name = tmp_path / "results/loras", "pytorch_lora_weights"
    for place in ("one", "other"):
        (tmp_path / place).mkdir()
    first, second = f"one/{name}.safetensors", f"other/{name}.safetensors"
    assert origin.unused_answer(name, first, results, "query") == name
    origin.keep_asked(results / "query" / f"{name}.parquet", first)
    assert origin.unused_answer(name, first, results, "query") == name
    assert origin.unused_answer(name, tmp_path / first, results, "query") == name
    assert origin.unused_answer(name, second, results, "query") == f"{name}_2"
    origin.keep_asked(results / "query" / f"{name}_2.parquet", second)
    assert origin.unused_answer(name, second, results, "query") == f"{name}_2"
    assert origin.unused_answer(name, "third/x", results, "query") == f"{name}_3"
    # Pictures of that name are another question.
    assert origin.unused_answer(name, second, results, "attribution") == name
    assert str(tmp_path) not in (results / ".asked/query" / name).read_text()


@pytest.mark.parametrize("age", [1, 9e9])
@pytest.mark.parametrize("status", ["answered", "refused"])
@pytest.mark.parametrize(("words", "table"), [(["query"], "query"), (["find", "--base", "mini"], "attributions")])
def test_an_answer_is_said_again_and_one_that_is_a_refusal_is_a_status(
    tmp_path, monkeypatch, capsys, words, table, status, age
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loras").mkdir()
    (tmp_path / "asked one.safetensors").touch()
    folder = tmp_path / "results/loras" / {"query": "query", "attributions": "attribution"}[table]
    folder.mkdir(parents=True)
    row = dict.fromkeys(tables.SCHEMAS[table].names) | {"query": "asked one", "pictures": 1, "status": status}
    if status == "refused":
        row |= {"reason": "it is none", "picture": "1.png"}
    else:
        row |= {"lora": "it is near", "rank": 1, "space": "SD1.5", "p": 0.01, "distance": 0.5, "prominence": 2.0}
        row |= {"cosine": 0.9, "chance": 0.5}
    path = folder / "asked_one.parquet"
    tables.write(path, table, [{name: row[name] for name in tables.SCHEMAS[table].names}])
    os.utime(path, (age, age))
    action, *rest = words
    asked = [action, "asked one.safetensors", "loras", *rest]
    assert main(asked, lambda made: 0) == (status == "refused")
    # What was answered just now Snakemake has said.
    assert ("it is n" in capsys.readouterr().err) == (age == 1)


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
        (["map", "{}/absent"], "{}/absent: there is no such file or folder\n"),
        (["map", "hree"], "it was looked for at {}/hree; did you mean {}/here?"),
        (["find", "here", "here"], "asked about by the base that the LoRAs are of: --base FOLDER"),
        (["one-step", "here"], "or one that comes with LoRA Atlas: mini, mini-flow, mini-flow-icons, mini-icons"),
        (["map", "~/no such folder"], "no such file or folder; it was looked for at {home}/no such folder"),
        (["run", "artbench"], "artbench: no study of that name, and no file at {}/artbench; did you mean artbench_sd"),
        (["run", "paintres"], "no file at {}/paintres; did you mean painters?; there are: artbench_flux, artbench_sd"),
        (["mpa", "here"], "mpa: no action of lora-atlas; did you mean map?; there are: map, query, find, one-step"),
        (["map", "here", "--config", "seed=1"], "stands after --: lora-atlas map here -- --config seed=1"),
        (["map", "--cores", "1", "here", "--snakefile", "here"], "lora-atlas map --cores 1 here -- --snakefile here"),
        (["map", "My", "Loras"], "Loras: one word too many; a name with spaces stands in quotes: lora-atlas map 'MY"),
        (["find", "here"], "find: name the folder of LoRA files, too: lora-atlas find WHAT FOLDER"),
        (["query", "here"], "query: name the folder of LoRA files, too"),
        (["map", "here", "--", "--config", "weights.pickles=refuse"], "its section: 'weights={pickles: refuse}'"),
        (["run", "designers", "--", "--configfile", "gone.yaml"], "gone.yaml: there is no such file or folder; it was"),
    ],
)
def test_what_is_not_there_is_said(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert main([each.format(tmp_path) for each in arguments], lambda made: pytest.fail("ran")) == 2
    assert words.replace("{}", str(tmp_path)).replace("{home}", str(Path.home())) in capsys.readouterr().err


def test_the_command_is_printed_and_its_status_handed_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my loras").mkdir()
    assert main(["map", "my loras"], lambda made: 3) == 3
    printed = capsys.readouterr().err.strip()
    import shlex

    assert settings(shlex.split(printed))["folder"] == str(tmp_path / "my loras")


def test_a_folder_that_may_not_be_written_to_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (".", os.W_OK))  # root may everything
    assert main(["demo"], lambda made: pytest.fail("ran")) == 2
    assert f"{tmp_path}: results lie in the folder that this is called in" in capsys.readouterr().err


def test_a_lock_that_was_left_is_named_with_the_command_that_removes_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my loras").mkdir()
    assert main(["map", "my loras"], lambda made: 1) == 1
    assert "--unlock" not in capsys.readouterr().err
    (tmp_path / ".snakemake/locks").mkdir(parents=True)
    (tmp_path / ".snakemake/locks/0.output.lock").touch()
    assert main(["map", "my loras", "--cores", "1"], lambda made: 1) == 1
    assert "If none is: lora-atlas map 'my loras' --cores 1 -- --unlock\n" in capsys.readouterr().err


SLOW = """
import pathlib, signal, sys, time
def ended(*_):
    time.sleep(1)  # as Snakemake, which first ends its jobs
    pathlib.Path("ended").touch()
    sys.exit(7)
signal.signal(signal.SIGINT, ended)
signal.signal(signal.SIGTERM, ended)
pathlib.Path("ready").touch()
time.sleep(60)
"""


@pytest.mark.fault(
    "Snakemake and SLURM",
    "Ctrl-C while lora-atlas runs, or SIGTERM to it",
    "Snakemake ends its jobs and gives up its lock, unhurried",
)
@pytest.mark.parametrize("interruption", ["Ctrl-C", "SIGTERM"])
def test_an_interruption_is_left_to_snakemake(tmp_path, interruption):
    (tmp_path / "slow.py").write_text(SLOW)
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; from lora_atlas import console; sys.exit(console._run(['slow']))"],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'workflow'}{os.pathsep}{tmp_path}"}, cwd=tmp_path,
        start_new_session=True, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (tmp_path / "ready").exists():
        assert child.poll() is None
        time.sleep(0.02)
    if interruption == "Ctrl-C":
        os.killpg(child.pid, signal.SIGINT)  # as a terminal does
    else:
        child.terminate()
    _, said = child.communicate(timeout=60)
    assert (child.returncode, said) == (7, "") and (tmp_path / "ended").exists()


def test_an_interruption_before_snakemake_is_there_reaches_it(monkeypatch):
    ended = []

    class Snakemake:
        def __init__(self, *_, **__):
            os.kill(os.getpid(), signal.SIGTERM)

        def terminate(self):
            ended.append(True)

        def wait(self):
            return 7

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(console.subprocess, "Popen", Snakemake)
    try:
        assert console._run(["snakemake"]) == 7
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended == [True]


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
    assert all(f"lora-atlas {name}" in done.stdout for name in console.ACTIONS)
    with pytest.raises(SystemExit):
        console.parser().parse_args([console.ACTIONS[0], "--help"])
