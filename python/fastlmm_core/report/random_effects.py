"""Tables of the random effects: variances, correlations, rank and principal components."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..diagnostics.principal_components import principal_components
from ..support.display import Cells, Line, Part
from ..support.text_tables import text_table, variance_cells

if TYPE_CHECKING:
    from ..estimation.fit import Fit

__all__ = ["Component", "RandomTables", "Rank", "correlation_cell"]

_Table = tuple[list[str], list[list[str]]]

_CORRELATION = 8
"""Width of a column of correlations."""


@dataclass(frozen=True)
class Component:
    """One random effect, or the residual.

    Attributes
    ----------
    factor, group, name : str
        Grouping factor (empty for the residual), term, effect.
    variance, std_dev : float
    correlations : tuple of float
        With the effects of the term listed before it; NaN where it is not defined.
    """

    factor: str
    group: str
    name: str
    variance: float
    std_dev: float
    correlations: tuple[float, ...] = ()


@dataclass(frozen=True)
class Rank:
    """In how many directions the random effects of a factor vary.

    Attributes
    ----------
    factor : str
    rank, size : int
    shares : tuple of float
        Of the principal components of the correlations, in falling order.
    """

    factor: str
    rank: int
    size: int
    shares: tuple[float, ...]


@dataclass(frozen=True)
class RandomTables:
    """What there is to say about the random effects of a fit.

    Attributes
    ----------
    components : tuple of Component
        Random effects in order, the residual last where it is independent.
    ranks : tuple of Rank
        Of the grouping factors with several effects, where these do not vary in all directions.
    """

    components: tuple[Component, ...]
    ranks: tuple[Rank, ...]

    @classmethod
    def of(cls, result: Fit) -> RandomTables:
        """Collect the tables of a fit."""
        deficient = principal_components(result) if result.singular else {}
        return cls(
            tuple(_components(result)),
            tuple(
                Rank(name, found.rank, len(found.names), tuple(found.share.tolist()))
                for name, found in deficient.items()
                if found.singular and len(found.names) > 1
            ),
        )

    def lines(self, width: int) -> list[str]:
        """As text: one table, or one for each grouping factor where the correlations do not fit beside it."""
        if not self.components:
            return []
        out = ["Random effects", *text_table(*self._whole(), left=2)]
        if max(map(len, out)) > width:
            out = []
            for factor, variances, correlations in self._by_factor(width):
                out += [f"Random effects of {factor}", *text_table(*variances, left=2)]
                for block in correlations:
                    out += ["", *text_table(*block, left=block[0].index("Corr") + 1)]
                out.append("")
            out += self._residual()
        if self.ranks:
            out += ["", _RANKS]
            lead = max(len(rank.factor) for rank in self.ranks) + 2
            for rank in self.ranks:
                head = f"{rank.factor:<{lead}}"
                cells = " ".join([f"rank {rank.rank} of {rank.size}: ", *map(_share, rank.shares)])
                out += textwrap.wrap(head + cells, width, subsequent_indent=" " * (lead + 2), break_on_hyphens=False)
        return out

    def parts(self, width: int) -> Iterator[Part]:
        """The same as tables."""
        if not self.components:
            return
        if max(map(len, text_table(*self._whole(), left=2))) <= width:
            yield Line("Random effects", "caption")
            yield Cells(*self._whole(), left=2)
        else:
            for factor, variances, correlations in self._by_factor(None):
                yield Line(f"Random effects of {factor}", "caption")
                yield Cells(*variances, left=2)
                for block in correlations:
                    yield Cells(*block, left=2)
            yield from self._residual()
        if self.ranks:
            rows = [[r.factor, f"{r.rank} of {r.size}", " ".join(map(_share, r.shares))] for r in self.ranks]
            yield Line(_RANKS, "caption")
            yield Cells(["Group", "Rank", "Shares"], rows, left=3)

    def _variances(self) -> tuple[list[str], list[str]]:
        """Cells of variances and standard deviations."""
        return (
            variance_cells([c.variance for c in self.components]),
            variance_cells([c.std_dev for c in self.components]),
        )

    def _whole(self) -> tuple[list[str], list[list[str]]]:
        """Header and cells of one table for all; the correlations are the columns from the fifth on."""
        n_corr = max(len(c.correlations) for c in self.components)
        rows, last = [], None
        for component, variance, deviation in zip(self.components, *self._variances(), strict=True):
            shown = component.group if component.group != last else ""
            last = component.group
            correlations = [correlation_cell(r) for r in component.correlations]
            rows.append(
                [shown, component.name, variance, deviation, *correlations, *[""] * (n_corr - len(correlations))]
            )
        return ["Group", "Name", "Variance", "Std.dev.", *["Corr"] * bool(n_corr), *[""] * (n_corr - 1)], rows

    def _by_factor(self, width: int | None) -> Iterator[tuple[str, _Table, list[_Table]]]:
        """For each grouping factor its variances and its correlations, the effects numbered within it.

        Parameters
        ----------
        width : int or None
            Of the text, which takes a few columns of correlations at a time; None for all at once.
        """
        variances, deviations = self._variances()
        for factor in dict.fromkeys(c.factor for c in self.components if c.factor):
            places = [i for i, c in enumerate(self.components) if c.factor == factor]
            own = [self.components[i] for i in places]
            terms = [c.group for c in own]
            head = ["", "Name", "Variance", "Std.dev."]
            numbers = [f"{k + 1}" for k in range(len(own))]
            several = len(set(terms)) > 1
            names = [f"{c.name} ({c.group})" if several else c.name for c in own]
            rows = [[numbers[k], names[k], variances[i], deviations[i]] for k, i in enumerate(places)]
            cells = [[""] * terms.index(c.group) + [correlation_cell(r) for r in c.correlations] for c in own]
            yield factor, (head, rows), list(_correlation_tables(numbers, names, cells, width))

    def _residual(self) -> list[str]:
        if self.components[-1].factor:
            return []
        variances, deviations = self._variances()
        return [f"Residual variance {variances[-1].strip()}, standard deviation {deviations[-1].strip()}"]


_RANKS = "Principal components of the correlations, share of the variance"


def _correlation_tables(
    numbers: Sequence[str], names: Sequence[str], cells: Sequence[Sequence[str]], width: int | None
) -> Iterator[_Table]:
    """Correlations of the effects of a factor with those before them.

    The rows have names where all columns fit beside them, otherwise numbers, and as many columns at a time as fit.
    """
    count = max(map(len, cells))
    lead = max(map(len, names)) + 8
    named = width is None or lead + _CORRELATION * count <= width
    room = count if named or width is None else (width - 6) // _CORRELATION
    for start in range(0, count, max(room, 1)):
        stop = min(start + room, count)
        rows = []
        for number, name, own in list(zip(numbers, names, cells, strict=True))[start + 1 :]:
            shown = [*own[start:stop], *[""] * (stop - max(len(own), start))]
            if any(shown):
                rows.append([number, *[name] * named, *shown[: stop - start]])
        yield [*[""] * named, "Corr", *numbers[start:stop]], rows


def _components(result: Fit) -> Iterator[Component]:
    model = result.model
    for (term, g), block in zip(result.G.items(), model.structure.blocks, strict=True):
        factor = model.factor_of(block).grouping.name
        correlations = result.random_effects_corr[term]
        for i, name in enumerate(model.exog_re_names[block.start : block.stop]):
            others = tuple(correlations[i, :i].tolist()) if block.correlated else ()
            variance = float(g[i, i])
            yield Component(factor, term, name, variance, math.sqrt(variance), others)
    known = "" if model.sigma is None else " (known)"
    if model.residual is None:
        yield Component("", "Residual" + known, "", float(result.sigma2), result.sigma)


def correlation_cell(value: float) -> str:
    """A correlation in a table; . where it is not defined."""
    if math.isnan(value):
        return "."
    shown = f"{value:.3f}"
    # 1.000 is what is not told apart from 1: say so only where it is 1
    return f"{math.copysign(0.999, value)}" if abs(float(shown)) == 1.0 and 1.0 - abs(value) > 1e-8 else shown


def _share(value: float) -> str:
    return "0" if value == 0.0 else "<0.001" if value < 0.0005 else f"{value:.3f}"
