"""How the authors of a base spell the names of its modules, beside how diffusers does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Tokens = Sequence[str]


@dataclass(frozen=True)
class Place:
    """Where an update belongs. Several `modules` share the rows of a fused layer, in this order.

    `rows`: how many each of them has; None where the layer is one module, or no fused layer has its shape. `swapped`:
    the halves of the rows stand in the other order (shift, scale). `heads`: rows of a head, where those of the modules
    alternate head by head; 0 where each module's stand together.
    """

    modules: tuple[str, ...]
    naming: str
    rows: tuple[int, ...] | None = None
    swapped: bool = False
    heads: int = 0


@dataclass(frozen=True)
class Spelling:
    """One spelling of a base's modules.

    `model`: the prefix of its modules in diffusers' spelling. `first`: first parts of names that are spelt so. `words`:
    what its parts are called, so that a name that is joined by underscores can be read. `translate`: parts → module,
    None for a name that it does not know. `suffix`: what a naming is called ends in it.
    """

    model: str
    first: frozenset[str]
    words: tuple[str, ...]
    translate: Callable[[Tokens], str | None]
    suffix: str = ""

    def place(self, naming: str, parts: Tokens) -> Place | None:
        """Where the module of these parts belongs."""
        found = self.translate(parts)
        return None if found is None else Place((f"{self.model}.{found}",), naming + self.suffix)
