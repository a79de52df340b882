"""Views: how vectors of a descriptor are compared. A study has one headline view; its tables hold many others."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .tables import KNOWN, TOGETHER, UNSEEN, WHOLE, WHOLE_UNSEEN

if TYPE_CHECKING:
    import pandas as pd

NO_BASIS, COMPONENTS = BASES = "whole", "components"


@dataclass(frozen=True)
class View:
    """`basis`: "whole" (distances of the LoRAs themselves) or "components" (principal components, with `calibration`);
    `distance`: L2, cosine or CSLS."""

    basis: str
    calibration: str
    distance: str

    @property
    def known(self) -> tuple[str, str]:
        """Scenario and calibration of the rows of known artists."""
        return (WHOLE, "none") if self.basis == NO_BASIS else (KNOWN, self.calibration)

    @property
    def unseen(self) -> tuple[str, str]:
        """Scenario and calibration of the rows of unseen artists."""
        return (WHOLE_UNSEEN if self.basis == NO_BASIS else UNSEEN), "none"

    @property
    def together(self) -> str:
        """Scenario of all LoRAs as they are, for clusters, geometry and maps."""
        return WHOLE if self.basis == NO_BASIS else TOGETHER

    def rows(self, frame: "pd.DataFrame", *, unseen: bool = False) -> "pd.Series":
        """Which rows of a table of retrieval (columns scenario, calibration, distance) it looks at: a mask."""
        scenario, calibration = self.unseen if unseen else self.known
        at = (frame["scenario"] == scenario) & (frame["calibration"] == calibration)
        return at & (frame["distance"] == self.distance)

    @property
    def label(self) -> str:
        if self.basis == NO_BASIS:
            return f"no basis, {self.distance}"
        return f"principal components, calibration {self.calibration}, {self.distance}"

    def stored(self) -> dict[str, str]:
        return asdict(self)


def headline(config: Mapping[str, Any]) -> View:
    """The view of a checked configuration."""
    return View(config["evaluation"]["basis"], config["embedding"]["calibration"], config["evaluation"]["distance"])
