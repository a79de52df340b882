"""Which files of the library a stage depends on: the closure of its imports, read from the source.

Snakemake reruns a job when the time of its script changes and does not look at what the script imports. Stages
therefore state a digest of these files among their parameters: an edit of one reruns the stages that use it, and a
touch, a fresh clone, a comment or a docstring reruns nothing.
"""

import ast
import contextlib
import hashlib
import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .atomic import replacing
from .keys import DIGESTS, key

PACKAGE = Path(__file__).parent
INSTALLED = PACKAGE.parent / "lora_atlas_workflow"  # the workflow, where pip has put it beside the library
# The folder of the Snakefile, its schemas, studies and models.
PROJECT = INSTALLED if INSTALLED.is_dir() else PACKAGE.parents[1]


KNOWN = 2_000  # sources that are remembered at most
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
Import = tuple[int, str | None, list[str]]  # dots, module and names of a `from … import …` with dots


@dataclass(frozen=True)
class _Source:
    """What is known of a source by its bytes alone."""

    done: str
    imports: list[Import]
    renders: bool  # templates that lie beside it


class _Sources:
    """What sources do and import, remembered beside what Python compiled of them: parsing them all takes seconds, and
    every start of Snakemake asks. Kept by the bytes of a source, and of this file, whose rules these are.

    Where Python writes nothing there (it was told not to, or the project is somebody else's), Snakemake's own folder of
    the working directory has it.
    """

    def __init__(self) -> None:
        name = f"sources.{sys.implementation.cache_tag}.json"
        beside = Path(importlib.util.cache_from_source(__file__)).with_name(name)
        self.memos = [*([] if sys.dont_write_bytecode else [beside]), Path(".snakemake", f"lora_atlas_{name}")]
        self.rules = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
        self._known: dict[str, _Source] | None = None
        self._found: dict[Path, tuple[tuple[int, ...], _Source]] = {}
        self._new = 0

    def of(self, file: Path) -> _Source:
        stat = file.stat()
        sign = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        found = self._found.get(file)
        if found is None or found[0] != sign:
            found = self._found[file] = (sign, self._of_bytes(file.read_bytes()))
        return found[1]

    def _of_bytes(self, source: bytes) -> _Source:
        known = self._remembered()
        name = hashlib.sha256(source).hexdigest()
        if name not in known:
            imports: list[Import] = []
            known[name] = _Source(_done(source, imports), imports, b'with_name("templates")' in source)
            self._new += 1
        return known[name]

    def _remembered(self) -> dict[str, _Source]:
        if self._known is None:
            self._known = {}
            for memo in self.memos:
                with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
                    self._known |= self._read(memo)
        return self._known

    def _read(self, memo: Path) -> dict[str, _Source]:
        said = json.loads(memo.read_bytes())
        if said["rules"] != self.rules:
            return {}
        return {
            name: _Source(
                str(done), [(int(level), module, list(names)) for level, module, names in imports], bool(renders)
            )
            for name, (done, imports, renders) in said["sources"].items()
        }

    def keep(self) -> None:
        """Write down what is new; where nothing can be written, it is found again by the next process."""
        if not self._new:
            return
        known = self._remembered()
        if len(known) > KNOWN:  # what this process did not ask for is then mostly of files as they were
            used = {id(source) for _, source in self._found.values()}
            known = {name: source for name, source in known.items() if id(source) in used}
        said = {name: (source.done, source.imports, source.renders) for name, source in known.items()}
        for memo in self.memos:
            if memo.parent.is_dir():
                with contextlib.suppress(OSError):
                    with replacing(memo) as temporary:
                        temporary.write_text(json.dumps({"rules": self.rules, "sources": said}))
                    break
        self._new = 0


_SOURCES = _Sources()


def closure(*modules: str) -> list[Path]:
    """Files of the modules (names below the package, "weights.gram") and of all that they import, sorted.

    Raises ModuleNotFoundError for a module that does not exist.
    """
    found: set[Path] = set()
    waiting = [_file(tuple(module.split("."))) for module in modules]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += _imports(file)
    return sorted(found)


def digest(*modules: str, also: Sequence[Path] = ()) -> str:
    """SHA-256 of what the closure's files, what is read beside them, and others do: what other code computed is not
    its."""
    within = closure(*modules)
    files = {file.relative_to(PACKAGE).as_posix(): file for file in within}
    tables = {file.relative_to(PACKAGE).as_posix(): file for file in _beside(within)}
    files |= {file.name: file for file in also}
    does = {name: _SOURCES.of(file).done for name, file in files.items()}
    _SOURCES.keep()
    return key(does | {name: DIGESTS.file(file) for name, file in tables.items()})


def data(*modules: str) -> list[Path]:
    """Tables (JSON) in the folders of the closure's files, and templates beside those that name the folder of them."""
    return _beside(closure(*modules))


def _beside(files: Sequence[Path]) -> list[Path]:
    found = {table for folder in {file.parent for file in files} for table in folder.glob("*.json")}
    rendering = (file for file in files if _SOURCES.of(file).renders)
    return sorted(found | {template for file in rendering for template in file.parent.glob("templates/*")})


def done(source: bytes) -> str:
    """SHA-256 of what a source does: of its tree, without comments, docstrings, layout, and what is empty in it.

    Empty parts are those that a later Python adds to its trees. Docstrings count where the source reads them.
    """
    return _done(source, [])


def _done(source: bytes, imports: list[Import]) -> str:
    """The same; what is imported from the package is added to `imports`, so that a tree is walked once."""
    text = _plain(ast.parse(source), imports, b"__doc__" not in source)
    return hashlib.sha256(text.encode()).hexdigest()


def _told(body: Sequence[ast.stmt]) -> bool:
    first = body[0] if body else None
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)


def _plain(node: ast.AST, imports: list[Import], bare: bool) -> str:
    """A tree as the text of nested tuples, type and fields, without docstrings where it is `bare`.

    The text is written at once: tuples, walked again by repr, took four times as long.
    """
    kind = type(node)
    if isinstance(node, ast.Constant):
        return f"('Constant', {type(node.value).__name__!r}, {repr(node.value)!r})"
    if kind is ast.Call and (script := _started(node)):  # a source beside this one that is run by its path
        imports.append((1, None, [script]))
    if isinstance(node, ast.ImportFrom) and node.level:
        imports.append((node.level, node.module, [alias.name for alias in node.names]))
    fields = []
    for name in kind._fields:
        value: Any = getattr(node, name, None)
        if isinstance(value, ast.AST):
            fields.append(f"({name!r}, {_plain(value, imports, bare)})")
            continue
        if bare and name == "body" and isinstance(node, DOCUMENTED) and _told(value):
            value = value[1:]
        if isinstance(value, list) and value:
            each = [_plain(one, imports, bare) if isinstance(one, ast.AST) else repr(one) for one in value]
            fields.append(f"({name!r}, [{', '.join(each)}])")
        elif value not in (None, []):
            fields.append(f"({name!r}, {value!r})")
    return f"({kind.__name__!r}, [{', '.join(fields)}])"


def _started(node: ast.AST) -> str | None:
    """The name of the module that `….with_name("NAME.py")` is the path of."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "with_name":
        name = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
        if isinstance(name, str) and name.endswith(".py"):
            return name.removesuffix(".py")
    return None


@cache
def _imports(file: Path) -> tuple[Path, ...]:
    package = file.parent.relative_to(PACKAGE).parts
    files = [init for depth in range(len(package) + 1) if (init := PACKAGE.joinpath(*package[:depth], "__init__.py"))]
    for level, module, names in _SOURCES.of(file).imports:
        base = package[: len(package) - level + 1] + tuple(module.split(".") if module else ())
        for name in names:
            inner = _try((*base, name))
            files.append(inner or _file(base))
    return tuple(files)


@cache
def _try(parts: tuple[str, ...]) -> Path | None:
    module = PACKAGE.joinpath(*parts)
    return next((f for f in (module.with_suffix(".py"), module / "__init__.py") if f.is_file()), None)


def _file(parts: tuple[str, ...]) -> Path:
    found = _try(parts) if parts else PACKAGE / "__init__.py"
    if found is None:
        raise ModuleNotFoundError(f"no module {'.'.join(parts)} in {PACKAGE.name}")
    return found
