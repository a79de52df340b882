"""Which files of the library a stage depends on: the closure of its imports, read from the source.

Snakemake reruns a job when the time of its script changes and does not look at what the script imports. Stages
therefore state a digest of these files among their parameters: an edit of one reruns the stages that use it, and a
touch, a fresh clone, a comment or a docstring reruns nothing.
"""

import ast
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from .keys import DIGESTS, key

PACKAGE = Path(__file__).parent
INSTALLED = PACKAGE.parent / "lora_atlas_workflow"  # the workflow, where pip has put it beside the library
# The folder of the Snakefile, its schemas, studies and models.
PROJECT = INSTALLED if INSTALLED.is_dir() else PACKAGE.parents[1]


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
    files = {file.relative_to(PACKAGE).as_posix(): file for file in closure(*modules)}
    tables = {file.relative_to(PACKAGE).as_posix(): file for file in data(*modules)}
    files |= {file.name: file for file in also}
    does = {name: DIGESTS.of(file, "code", done) for name, file in files.items()}
    return key(does | {name: DIGESTS.file(file) for name, file in tables.items()})


def data(*modules: str) -> list[Path]:
    """Tables (JSON) in the folders of the closure's files, and templates beside those that name the folder of them."""
    files = closure(*modules)
    found = {table for file in files for table in file.parent.glob("*.json")}
    rendering = (file for file in files if b'with_name("templates")' in file.read_bytes())
    return sorted(found | {template for file in rendering for template in file.parent.glob("templates/*")})


def done(source: bytes) -> str:
    """SHA-256 of what a source does: of its tree, without comments, docstrings, layout, and what is empty in it.

    Empty parts are those that a later Python adds to its trees. Docstrings count where the source reads them.
    """
    tree = ast.parse(source)
    if b"__doc__" not in source:
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and _told(
                node.body
            ):
                del node.body[0]
    return hashlib.sha256(repr(_plain(tree)).encode()).hexdigest()


def _told(body: Sequence[ast.stmt]) -> bool:
    first = body[0] if body else None
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)


def _plain(node: Any) -> Any:
    if isinstance(node, ast.Constant):
        return type(node.value).__name__, repr(node.value)
    if isinstance(node, ast.AST):
        fields = [(name, getattr(node, name, None)) for name in node._fields]
        return type(node).__name__, [(name, _plain(each)) for name, each in fields if each is not None and each != []]
    return [_plain(each) for each in node] if isinstance(node, list) else node


@cache
def _imports(file: Path) -> tuple[Path, ...]:
    package = file.parent.relative_to(PACKAGE).parts
    files = [init for depth in range(len(package) + 1) if (init := PACKAGE.joinpath(*package[:depth], "__init__.py"))]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + tuple(
                (node.module or "").split(".") if node.module else ()
            )
            for alias in node.names:
                inner = _try(base + (alias.name,))
                files.append(inner or _file(base))
    return tuple(files)


def _try(parts: tuple[str, ...]) -> Path | None:
    module = PACKAGE.joinpath(*parts)
    return next((f for f in (module.with_suffix(".py"), module / "__init__.py") if f.is_file()), None)


def _file(parts: tuple[str, ...]) -> Path:
    found = _try(parts) if parts else PACKAGE / "__init__.py"
    if found is None:
        raise ModuleNotFoundError(f"no module {'.'.join(parts)} in {PACKAGE.name}")
    return found
