"""Rooms of the library import from the floors below them, as docs/architecture.md draws them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "workflow/lora_atlas"


def floors() -> dict[str, int]:
    """Room → its floor, from the ground up."""
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    drawn = page.split("Floors, from the ground up", 1)[1].split("##", 1)[0]
    lines = [line.split() for line in re.findall(r"^    (\w.*)$", drawn, re.MULTILINE)]
    return {room: floor for floor, rooms in enumerate(lines) for room in rooms}


def imports(file: Path) -> Iterator[str]:
    """Rooms that a file of the library imports from, wherever in it."""
    package = file.relative_to(LIBRARY).parent.parts
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + tuple(node.module.split(".") if node.module else ())
            yield from (((*base, alias.name))[0] for alias in node.names)
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        assert not any(name.startswith(("snakemake", "lora_atlas")) for name in names), file


def room(file: Path) -> str:
    parts = file.relative_to(LIBRARY).parts
    return parts[0].removesuffix(".py")


FILES = [file for file in sorted(LIBRARY.rglob("*.py")) if file != LIBRARY / "__init__.py"]


def test_every_room_is_drawn_once_and_nothing_else_is():
    assert set(floors()) == {room(file) for file in FILES}


def test_rooms_import_from_floors_below():
    floor = floors()
    wrong = [
        f"{file.relative_to(LIBRARY)} imports {other}"
        for file in FILES
        for other in imports(file)
        if other != room(file) and other != "__version__" and floor[other] >= floor[room(file)]
    ]
    assert wrong == []


def test_the_check_finds_an_import_that_runs_up(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "LIBRARY", tmp_path)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/new.py").write_text("def f():\n    from ..metrics import ranking\n    from . import gram\n")
    assert list(imports(tmp_path / "weights/new.py")) == ["metrics", "weights"]
    assert floors()["metrics"] > floors()["weights"]
