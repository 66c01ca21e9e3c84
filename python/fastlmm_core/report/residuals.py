"""Tables of structured residuals: standard deviations and correlations over the visits, parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..inference.residual_parameters import residual_parameters
from ..support.display import Cells, Line, Part
from ..support.text_tables import estimate_cells, text_table
from ..support.types import Array
from .random_effects import correlation_cell

if TYPE_CHECKING:
    from ..estimation.fit import Fit

__all__ = ["ResidualTable"]


VISITS = 10
"""Visits up to which their correlations are shown."""

DIGITS = 1e-3
"""Relative precision to which standard deviations are shown."""


@dataclass(frozen=True)
class ResidualTable:
    """What there is to say about the structure of the residuals.

    Attributes
    ----------
    term : str
        As written.
    names : tuple of str
        Of the parameters.
    estimate, std_error : tuple of float
    labels : tuple of str
        Of the visits; empty where there are too many or none.
    strata : tuple of (str, (m,) array, (m, m) array)
        Level of `by`, standard deviations, correlations.
    """

    term: str
    names: tuple[str, ...]
    estimate: tuple[float, ...]
    std_error: tuple[float, ...]
    labels: tuple[str, ...]
    strata: tuple[tuple[str, Array, Array], ...]

    @classmethod
    def of(cls, result: Fit) -> ResidualTable:
        """Collect the table of a fit with structured residuals."""
        part = result.model.residual
        assert part is not None
        found = residual_parameters(result)
        few = part.at_visits and len(part.labels) <= VISITS
        strata = []
        for own in part.strata if few else ():
            covariance = result.sigma2 * own.matrix(result.phi, np.arange(len(part.labels)))
            sd = np.sqrt(np.diag(covariance))
            strata.append((own.label, sd, covariance / np.outer(sd, sd)))
        return cls(
            part.term, found.names, tuple(found.estimate.tolist()), tuple(found.std_error.tolist()),
            part.labels if few else (), tuple(strata),
        )  # fmt: skip

    def lines(self) -> list[str]:
        """As text."""
        out: list[str] = []
        for heading, header, cells in self._tables():
            out += ["", heading, *text_table(header, cells, left=1)]
        return out

    def parts(self) -> Iterator[Part]:
        """The same as tables."""
        for heading, header, cells in self._tables():
            yield Line(heading, "caption")
            yield Cells(header, cells)

    def _tables(self) -> Iterator[tuple[str, list[str], list[list[str]]]]:
        """Heading, header and cells: the visits of each stratum; the parameters where they say more in few numbers."""
        heading = f"Residuals: {self.term}"
        for level, deviations, correlations in self.strata if self.labels else ():
            sizes = deviations.tolist()
            shown = estimate_cells(sizes, [DIGITS * size for size in sizes], 3)
            cells = [
                [name, shown[i], *map(correlation_cell, correlations[i, :i].tolist()), *[""] * (len(shown) - 1 - i)]
                for i, name in enumerate(self.labels)
            ]
            header = ["Visit", "Std.dev.", *["Corr"] * (len(cells) > 1), *[""] * (len(cells) - 2)]
            yield f"{heading}{f', {level}' if level else ''}", header, cells
        if not self.labels or len(self.names) <= 2 * len(self.labels) * max(len(self.strata), 1):
            errors = list(self.std_error)
            # what has no error is shown to three decimals of a correlation, or three digits
            digits = [
                error if error == error else 1e-3 * (1.0 if name.startswith("rho") else abs(value))
                for name, value, error in zip(self.names, self.estimate, errors, strict=True)
            ]
            shown = estimate_cells(errors, errors, 4)
            shown = [cell if error == error else "-" for cell, error in zip(shown, errors, strict=True)]
            columns = (self.names, estimate_cells(list(self.estimate), digits, 4), shown)
            rows = [list(row) for row in zip(*columns, strict=True)]
            yield "Parameters of the residuals" if self.labels else heading, ["Name", "Estimate", "SE"], rows
