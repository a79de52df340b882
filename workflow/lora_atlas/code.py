"""Which files of the library a stage depends on: the closure of its imports, read from the source.

Snakemake reruns a job when its script changes and does not look at what the script imports. Stages therefore name
these files as inputs: editing one reruns the stages that use it, touching one reruns nothing.
"""

import ast
import hashlib
from functools import cache
from pathlib import Path

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


def digest(*modules: str) -> str:
    """SHA-256 of the closure's files: what was computed by other code is not to be taken for this code's."""
    found = hashlib.sha256()
    for file in closure(*modules):
        found.update(file.relative_to(PACKAGE).as_posix().encode() + b"\0" + file.read_bytes())
    return found.hexdigest()


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
