"""Every error that the library raises by a name of its own is on docs/errors.md, as it comes about."""

import ast
import resource
from pathlib import Path

import errors
import private
import pytest

ROOT = Path(__file__).parents[2]
ROWS = {
    line.split(" | ")[0].removeprefix("| "): line
    for line in (ROOT / "docs/errors.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| ---")
}


@pytest.mark.parametrize("name", sorted(errors.FOUND))
def test_it_is_as_on_the_page(name, tmp_path):
    limits = {of: resource.getrlimit(getattr(resource, of)) for of in dir(resource) if of.startswith("RLIMIT_")}
    error, message = errors.said(name, tmp_path)
    # A limit that stays with this process ends some later test for want of memory.
    assert {of: resource.getrlimit(getattr(resource, of)) for of in limits} == limits
    assert type(error).__name__ == name and type(error).__module__.startswith("lora_atlas."), repr(error)
    assert ROWS[name] == errors.row(name, message), "run `make docs` and commit what it changes"
    assert len(message) < 400 and all(line.isprintable() for line in message.splitlines())
    assert not [words for words in errors.FOUND[name].words if words not in message]


def test_every_error_of_the_library_is_on_the_page():
    """Classes that end in an exception of Python's or of the library's own."""
    classes = {
        node.name: [ast.unparse(base) for base in node.bases]
        for file in (ROOT / "workflow/lora_atlas").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    }
    builtin = {name for name, of in vars(__import__("builtins")).items() if isinstance(of, type)}
    known = {name for name in builtin if name.endswith(("Error", "Exception", "Warning"))}
    raised = set()
    while more := {name for name, bases in classes.items() if set(bases) & (known | raised)} - raised:
        raised |= more
    assert raised == set(errors.FOUND) == set(ROWS) - {"error"}
    text = (ROOT / "docs/errors.md").read_text(encoding="utf-8")
    assert text.startswith(errors._HEAD)
    assert private.told([ROOT / "docs/errors.md"], private.words()) == []
