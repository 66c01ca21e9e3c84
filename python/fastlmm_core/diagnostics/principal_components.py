"""In how many directions random effects vary, and in which (Bates, Kliegl, Vasishth and Baayen 2015, arXiv:1506.04967).

The covariance matrix of the random effects of a factor is that of all its terms.  Its rank is the number of directions
that have a variance; a singular fit has fewer than effects.
"""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..covariance.principal import principal_axes
from ..support.arguments import checked
from ..support.text_tables import html_table, text_table
from ..support.types import Array
from ..tables.columns import native_frame

if TYPE_CHECKING:
    from ..estimation.fit import Fit

__all__ = ["PrincipalComponents", "principal_components"]


@checked
@dataclass(frozen=True, repr=False)
class PrincipalComponents:
    """Principal components of the random effects of one grouping factor; prints as text, shows as HTML in notebooks.

    Attributes
    ----------
    group_name : str
    names : tuple of str
        The random effects.
    correlation : bool
        Whether the components are those of the correlations, where units do not matter, or of the covariances.
    rank : int
        Number of directions that have a variance.
    variance : (q,) array
        Of each component, in falling order; exactly 0 behind the rank.
    loadings : (q, q) array
        The components as columns: orthonormal directions, one row per effect.
    """

    group_name: str
    names: tuple[str, ...]
    correlation: bool
    rank: int
    variance: Array
    loadings: Array
    _library: str = field(repr=False)

    @property
    def share(self) -> Array:
        """Share of each component in the variance of all (q,); 0 where there is no variance at all."""
        total = self.variance.sum()
        return self.variance / total if total > 0.0 else np.zeros_like(self.variance)

    @property
    def singular(self) -> bool:
        """Whether there are fewer directions than effects."""
        return self.rank < len(self.names)

    def to_frame(self) -> Any:
        """One row per component: variance, share and cumulative share, and the loading of each effect by its name."""
        columns = {"variance": self.variance, "share": self.share, "cumulative": np.cumsum(self.share)}
        names = [f"loading_{name}" for name in self.names]
        return native_frame(
            self._library,
            {
                "component": np.arange(1, len(self.variance) + 1),
                **columns,
                **dict(zip(names, self.loadings, strict=True)),
            },
        )

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        cumulative = np.cumsum(self.share)
        rows = [["share", *(f"{value:.3f}" for value in self.share)], ["cumulative", *(f"{v:.3f}" for v in cumulative)]]
        rows += [
            [name, *(f"{value:.2f}" for value in line)] for name, line in zip(self.names, self.loadings, strict=True)
        ]
        return ["", *(f"{i + 1}" for i in range(len(self.names)))], rows

    def _title(self) -> str:
        kind = "correlations" if self.correlation else "covariances"
        return f"Principal components of the {kind} of {self.group_name}: rank {self.rank} of {len(self.names)}"

    def __repr__(self) -> str:
        return "\n".join([self._title(), *text_table(*self._cells(), left=1)])

    def _repr_html_(self) -> str:
        return f"<div><p>{html.escape(self._title())}</p>{html_table(*self._cells(), left=(0,))}</div>"


def principal_components(result: Fit, correlation: bool = True) -> dict[str, PrincipalComponents]:
    """See `LMMResult.principal_components`."""
    model, ranks = result.model, result.random_effects_rank
    found = {}
    for factor in model.factors:
        if factor.start == factor.stop:
            # subjects of residuals, without random effects
            continue
        blocks = zip(model.term_names, model.structure.blocks, strict=True)
        rank = sum(ranks[term] for term, block in blocks if factor.start <= block.start < factor.stop)
        relative = result.relative_factor[factor.columns, factor.columns]
        variance, loadings = principal_axes(relative * result.sigma, rank, correlation)
        name = factor.grouping.name
        found[name] = PrincipalComponents(
            name, result.effect_names[factor.columns], correlation, rank, variance, loadings, model.library
        )
    return found
