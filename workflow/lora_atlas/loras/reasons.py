"""Why a file is refused, in few words: what kind of key, how many of them, three examples; never a list of
thousands."""

import re
from collections.abc import Iterable
from pathlib import Path

from ..labels import printable

LONGEST = 360  # characters of a reason, without the path of its file
EXAMPLES = 3
_KEY = 90  # characters of one key


def listed(names: Iterable[str], examples: int = EXAMPLES) -> str:
    """The first of the names, and how many there are besides."""
    found = [brief(name) for name in names]
    more = len(found) - examples
    return ", ".join(found[:examples]) + (f" and {more:,} more" if more > 0 else "")


def brief(name: str, longest: int = _KEY) -> str:
    """A name that may be foreign, printable and no longer than that: its beginning and its end."""
    said = printable(name)
    head = longest // 3
    return said if len(said) <= longest else f"{said[:head]}…{said[head + 1 - longest :]}"


def told(wrong: Iterable[tuple[str, str]]) -> list[str]:
    """Lines of what is wrong, from pairs of a name and its reason: equal reasons, numbers aside, make one line.

    The commonest first, and all of them together no longer than LONGEST.
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, reason in wrong:
        groups.setdefault(re.sub(r"\d+|'[^']*'", "#", reason), []).append((name, reason))
    lines: list[str] = []
    room = LONGEST
    for number, group in enumerate(sorted(groups.values(), key=lambda group: (-len(group), group[0]))):
        names = [name for name, _ in group if name]
        lengths = (f"{listed(names, n)}: {group[0][1]}" for n in range(EXAMPLES, 0, -1))
        line = next((each for each in lengths if len(each) <= room), None) if names else group[0][1]
        line = line or f"{listed(names, 1)}: {group[0][1]}"
        if len(line) > room and number:
            lines.append(f"and {len(groups) - number} other kinds of fault")
            break
        lines.append(brief(line, room) if len(line) > room else line)
        room -= len(line) + 30
    return lines


def in_a_row(reason: str, path: Path, base: str | None = None) -> str:
    """A reason as a table has it: in one line, and without the folders of the file and of its base. Tables are handed
    on, and where somebody keeps files is nobody's business."""
    reason = reason.replace(":\n  ", ": ").replace("\n  ", " · ").replace("\n", " · ")
    for prefix in (*(f"{path / f'adapter_model.{end}'}: " for end in ("safetensors", "bin")), f"{path}: "):
        reason = reason.removeprefix(prefix)
    if base is not None:
        reason = reason.removeprefix(f"{base}: ").replace(f"{base}/", "weights.base/")
    for folder in (path, path.parent):
        if folder.name:
            reason = reason.replace(f"{folder}/", "")
    return printable(reason)
