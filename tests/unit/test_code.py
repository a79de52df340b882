"""The closure of imports: what it holds, what it leaves out, and that it is what Python really imports."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lora_atlas.code import PACKAGE, _Sources, closure, data, digest, done
from lora_atlas.weights.gram import KERNELS

ROOT = Path(__file__).parents[2]


def names(*modules: str) -> list[str]:
    return [path.relative_to(PACKAGE).as_posix() for path in closure(*modules)]


def module(*parts: str) -> str:
    """The module that `from lora_atlas.PARTS import PART` reads: a file of that name, or the one before it."""
    return ".".join(parts if PACKAGE.joinpath(*parts).with_suffix(".py").is_file() else parts[:-1])


def rules() -> dict[str, tuple[str, tuple[str, ...] | None]]:
    """Rule → its adapter, and what its `code(...)` or `asked(...)` names, the adapter first; of every rule with one."""
    found = {}
    for file in sorted((ROOT / "workflow/rules").glob("*.smk")):
        parts = re.split(r"^\s*(?:rule|checkpoint) (\w+):", file.read_text(), flags=re.MULTILINE)
        for rule, body in zip(parts[1::2], parts[2::2], strict=True):
            adapter = re.search(r"scripts/(\w+)\.py", body)
            named = re.search(r"code=code\(([^)]*)\)|asked=asked\(\s*(\"\w+\",\s*\[[^]]*\])", body)
            if adapter:
                found[rule] = (adapter[1], tuple(re.findall(r'"([\w.]+)"', named[0])) if named else None)
    return found


RULES = rules()
MODULES = sorted({module for _, named in RULES.values() for module in (named or ())[1:]})
STAGES = [rule for rule, (_, named) in RULES.items() if named]


# --- what is in it


def test_transitive_imports_and_every_package_on_the_way_are_in_it():
    assert names("mini.loop") == [
        "__init__.py", "atomic.py", "labels.py", "mini/__init__.py", "mini/loop.py", "seeds.py", "tables.py",
        "tensors.py",
    ]  # fmt: skip
    assert {"weights/__init__.py", "loras/files.py", "tables.py"} <= set(names("weights.gram"))


def test_imports_within_functions_are_in_it():
    """Painters are imported where they paint: a change of theirs still changes the pictures."""
    found = names("pictures.sources")
    assert {"pictures/synthetic.py", "pictures/handling.py", "pictures/scenes.py", "pictures/decode.py"} <= set(found)


def test_an_imported_name_is_the_file_that_has_it_and_an_imported_module_is_that_module():
    assert "tables.py" in names("weights.gram")  # from ..tables import replacing
    assert "mini/autoencoder.py" in names("mini.card")  # from . import autoencoder
    assert "pictures/sources/__init__.py" in names("config")  # from .pictures import sources


def test_a_source_that_is_started_by_its_path_is_in_it():
    """The process that opens pickles imports nothing of the library, and nothing imports it."""
    assert "loras/unpickle.py" in names("loras.pickles") and "loras/unpickle.py" in names("collection.inventory")


def test_a_package_is_its_init_file():
    assert names("metrics") == ["__init__.py", "metrics/__init__.py"]


@pytest.mark.parametrize("module", MODULES)
def test_files_are_sorted_absolute_and_there_once(module):
    found = closure(module)
    assert found == sorted(set(found))
    assert all(path.is_absolute() and path.is_file() for path in found)
    assert PACKAGE / "__init__.py" in found


def test_several_modules_give_the_union_in_any_order():
    both = closure("metrics.retrieval", "weights.gram")
    assert both == closure("weights.gram", "metrics.retrieval")
    assert set(both) == set(closure("metrics.retrieval")) | set(closure("weights.gram"))
    assert closure() == []


# --- what is not


def test_unrelated_rooms_are_left_out():
    def rooms(module: str) -> set[str]:
        return {name.split("/")[0] for name in names(module) if "/" in name}

    assert rooms("metrics.retrieval") == rooms("metrics.clustering") == {"metrics"}
    assert rooms("weights.gram") == {"weights", "loras"}
    assert rooms("features.extract") == {"features", "pictures", "hub"}
    assert rooms("pictures.synthetic") == {"pictures"}
    assert rooms("embeddings.describe") == {"embeddings", "weights", "loras"}
    assert "study.py" not in names("diffusion.train") and "config.py" not in names("diffusion.train")
    # One stage's file must not rerun its neighbour.
    assert "diffusion/train.py" not in names("diffusion.generate")
    assert "diffusion/generate.py" not in names("diffusion.train")


@pytest.mark.parametrize("module", ["nowhere", "metrics.nowhere", "nowhere.retrieval", "metrics.retrieval.mAP"])
def test_an_unknown_module_is_named(module):
    with pytest.raises(ModuleNotFoundError, match=rf"no module {re.escape(module)} in lora_atlas"):
        closure("tables", module)


# --- what it is a digest of


def test_what_a_source_does_is_its_digest_and_how_it_looks_is_not():
    said = '''"""What it does."""\n\nX = {"a": 1}  # why\n\n\ndef f(x):\n    """In words."""\n    return x + 1\n'''
    for alike in (
        said.replace("# why", "# another reason"),
        said.replace("What it does", "What it did").replace("In words", "In other words"),
        said.replace('{"a": 1}', "{\n    'a': 1,\n}"),
        "# first\n" + said + "\n\n",
        said.replace("\n", "\r\n"),
    ):
        assert done(alike.encode()) == done(said.encode()), alike
    for other in (
        said.replace("x + 1", "x + 2"),
        said.replace("x + 1", "x + 1.0"),
        said.replace("x + 1", "x + True"),
        said.replace('"a"', 'b"a"'),
        said.replace("return", "yield"),
        said + "print(__doc__)\n",
    ):
        assert done(other.encode()) != done(said.encode()), other
    read = said + "print(__doc__)\n"
    assert done(read.encode()) != done(read.replace("What it does", "What it did").encode())


def test_the_digest_names_the_files_and_the_adapter(tmp_path):
    (tmp_path / "one.py").write_text("x = 1\n")
    (tmp_path / "two.py").write_text("x = 1\n")
    one, two = (digest("tables", also=[tmp_path / name]) for name in ("one.py", "two.py"))
    assert len({one, two, digest("tables"), digest("seeds")}) == 4 and digest("tables") == digest("tables")


def test_what_is_remembered_of_sources_is_what_they_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".snakemake").mkdir()
    monkeypatch.setattr("sys.dont_write_bytecode", True)  # so that nothing is kept beside the code
    source = tmp_path / "one.py"
    source.write_text("from ..atomic import replacing\n\n\ndef f():\n    from .. import tables, seeds\n")
    first = _Sources()
    found = first.of(source)
    assert found.imports == [(2, "atomic", ["replacing"]), (2, None, ["tables", "seeds"])]
    assert found.done == done(source.read_bytes())
    first.keep()
    (memo,) = (tmp_path / ".snakemake").iterdir()
    again = _Sources()
    monkeypatch.setattr("ast.parse", None)  # nothing is parsed twice
    assert again.of(source) == found
    monkeypatch.undo()
    source.write_text("x = 1\n")
    for each in (again, _Sources()):  # another content is another source, within a process too
        assert each.of(source).imports == [] and each.of(source).done == done(b"x = 1\n")
    for damaged in (b"", b"[]", b'{"rules": 1}', memo.read_bytes().replace(b'"rules": "', b'"rules": "0')):
        memo.write_bytes(damaged)
        monkeypatch.chdir(tmp_path)
        assert _Sources().of(source).done == done(b"x = 1\n")


def test_tables_and_templates_beside_code_are_in_its_digest():
    assert [path.name for path in data("loras.families")] == ["modules.json"]
    assert [path.name for path in data("pictures.page")] == ["pictures.html"]
    assert data("pictures.sources") == data("atlas.charts") == []  # a page's look makes no picture and no chart old
    assert [path.name for path in data("atlas.page")] == ["atlas.css", "atlas.html", "atlas.js", "query.html"]
    assert set(data("loras.families")) <= set(data("weights.gram")) and data("metrics.retrieval") == []


# --- what Python does


@pytest.fixture(scope="module")
def imported() -> dict[str, list[str]]:
    """Module → files of the package that importing it loads; the package is fresh for each, torch is not."""
    code = f"""
import importlib, json, sys
found = {{}}
for module in {MODULES!r}:
    for name in [name for name in sys.modules if name.split(".")[0] == "lora_atlas"]:
        del sys.modules[name]
    importlib.import_module("lora_atlas." + module)
    found[module] = [m.__file__ for name, m in sys.modules.items() if name.split(".")[0] == "lora_atlas"]
print(json.dumps(found))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "workflow")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("module", MODULES)
def test_all_that_an_interpreter_imports_is_in_it(imported, module):
    loaded = {Path(file).relative_to(PACKAGE).as_posix() for file in imported[module]}
    assert {f"{module.replace('.', '/')}.py", f"{module.replace('.', '/')}/__init__.py"} & loaded
    assert loaded <= set(names(module))


# --- the rules


def test_every_stage_of_a_study_names_its_code():
    """The mini models are committed: a change of the library must not train them again."""
    assert len(STAGES) >= 12
    without = {rule for rule in RULES if rule not in STAGES}
    pretraining = {"paint_corpus", "mini_card", "draw_icons", "icon_card", "flow_card"}
    assert without == {rule for rule in RULES if rule.startswith("pretrain_")} | pretraining


@pytest.mark.parametrize("rule", STAGES)
def test_all_that_an_adapter_imports_is_in_the_code_of_its_rule(rule):
    adapter, named = RULES[rule]
    tree = ast.parse((ROOT / f"workflow/scripts/{adapter}.py").read_text())
    direct = [
        module(*node.module.split(".")[1:], alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lora_atlas"
        for alias in node.names
    ]
    assert direct, adapter
    assert named[0] == adapter
    assert set(names(*direct)) <= set(names(*named[1:]))


# --- what `snakemake --list` says


def test_every_rule_says_what_it_is_for_in_a_line():
    for file in [ROOT / "Snakefile", *sorted((ROOT / "workflow/rules").glob("*.smk"))]:
        parts = re.split(r"^ *(?:rule|checkpoint) (\w+):\n", file.read_text(), flags=re.MULTILINE)
        for rule, body in zip(parts[1::2], parts[2::2], strict=True):
            assert re.match(r' *"""[A-Z][^\n]{15,}[.?!]"""\n|.*PATH\."""\n', body), f"{file.name}: {rule}"


def test_every_kernel_that_python_can_name_has_a_rule():
    """`delta2` would have ended in a MissingInputException."""
    constraint = re.search(r'kernel="([^"]+)"', (ROOT / "workflow/rules/common.smk").read_text())[1]
    assert all(re.fullmatch(constraint, kernel) for kernel in [*KERNELS, "delta2", "delta_low"])
