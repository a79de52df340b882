"""How the authors of a base spell the names of its modules, beside how diffusers does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Tokens = Sequence[str]


@dataclass(frozen=True)
class Place:
    """Where an update belongs. Several `modules` share the rows of a fused layer, in this order.

    `widths`: rows of each of them, as multiples of the layer's input width; None where the layer is one module, and
    -1 for "all that is left". `swapped`: the halves of the rows stand in the other order (shift, scale).
    """

    modules: tuple[str, ...]
    naming: str
    widths: tuple[int, ...] | None = None
    swapped: bool = False


@dataclass(frozen=True)
class Spelling:
    """One spelling of a base's modules.

    `model`: the prefix of its modules in diffusers' spelling. `first`: first parts of names that are spelt so;
    `joined`: others that are spelt so only where underscores join the parts. `words`: what its parts are called, so
    that a name that is joined by underscores can be read. `translate`: parts → place without its model, None for a name
    that it does not know. `alone`: not under the prefix of another model. `suffix`: what a naming is called ends in it.
    """

    model: str
    first: frozenset[str]
    words: tuple[str, ...]
    translate: Callable[[Tokens], Place | None]
    joined: frozenset[str] = frozenset()
    alone: bool = False
    suffix: str = ""

    def place(self, naming: str, parts: Tokens) -> Place | None:
        """Where the module of these parts belongs."""
        found = self.translate(parts)
        if found is None:
            return None
        modules = tuple(f"{self.model}.{module}" for module in found.modules)
        return Place(modules, naming + self.suffix, found.widths, found.swapped)


IMAGE, CONTEXT = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")


def one(name: str) -> Place:
    """A layer that is one module."""
    return Place((name,), "")


def fused(block: str, names: Sequence[str], widths: tuple[int, ...]) -> Place:
    """A layer whose rows several modules of a block share."""
    return Place(tuple(f"{block}.{name}" for name in names), "", widths)
