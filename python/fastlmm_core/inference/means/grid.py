"""The reference grid: all combinations of the levels of the factors, covariates at their means or at given values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import LMMError
from ...formula.coding import fixed_terms, reference_level
from ...formula.specification import Numbers
from ...support.types import Array
from .cells import Cells, check_weights, levels_of_rows

if TYPE_CHECKING:
    from ...estimation.model import Model

__all__ = ["ReferenceGrid"]


_LARGEST = 50_000_000  # elements of the design on the grid of one interaction


class ReferenceGrid:
    """Combinations of levels at which the linear predictor is evaluated.

    Parameters
    ----------
    model : LinearMixedModel
        From a formula.
    at : mapping, optional
        Values of covariates, or a selection of levels of factors, by the name of the column.
    weights : str
        One of `cells.WEIGHTS`: how averages over factors are weighted.

    Attributes
    ----------
    levels : dict
        Values of each variable that the grid varies.
    means : dict
        Where the other variables, which are numeric, stand.
    """

    def __init__(self, model: Model, at: Mapping[str, Any] | None = None, weights: str = "equal") -> None:
        check_weights(weights)
        if model.spec is None:
            raise LMMError(
                "marginal means and slopes need a model from a formula, which knows its factors; for a model from "
                "arrays test linear combinations of its coefficients, e.g. test([[0, 1]])"
            )
        self.model, self.weights = model, weights
        self._spec = model.spec
        reference = model.spec.reference
        self.levels = {name: value for name, value in reference.items() if isinstance(value, tuple)}
        self.means = {name: value.mean for name, value in reference.items() if isinstance(value, Numbers)}
        for name, values in (at or {}).items():
            if name not in reference:
                raise LMMError(f"at: {name!r} is not a variable of the fixed part, which uses {self._names()}")
            chosen = list(values) if np.ndim(values) else [values]
            if not chosen:
                raise LMMError(f"at: {name!r} has no values; give at least one")
            self.levels[name] = self._known(name, chosen) if name not in self.means else self._numbers(name, chosen)
            self.means.pop(name, None)

    def _names(self) -> str:
        return ", ".join(map(repr, self._spec.reference)) or "none"

    def _known(self, name: str, chosen: Sequence[Any]) -> tuple[Any, ...]:
        known = self.levels[name]
        for value in chosen:
            if value not in known:
                raise LMMError(f"at: {name!r} has no level {value!r}; its levels are {', '.join(map(repr, known))}")
        return tuple(known[known.index(value)] for value in chosen)

    @staticmethod
    def _numbers(name: str, chosen: Sequence[Any]) -> tuple[float, ...]:
        try:
            values = np.array(chosen, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise LMMError(f"at: {name!r} is numeric; give numbers, not {chosen!r}") from error
        if not np.isfinite(values).all():
            raise LMMError(f"at: {name!r} has values that are not finite; give finite numbers")
        return tuple(values.tolist())

    @property
    def variables(self) -> tuple[str, ...]:
        """Columns of the data that the fixed part uses."""
        return tuple(self._spec.reference)

    @property
    def several(self) -> tuple[str, ...]:
        """Numeric variables for which several values were given."""
        numeric = (name for name, value in self._spec.reference.items() if isinstance(value, Numbers))
        return tuple(name for name in numeric if len(self.levels.get(name, ())) > 1)

    def coded(self, names: Sequence[str]) -> tuple[Any, ...]:
        """The reference level of each variable in the formula's coding, the first level where there is none."""
        found = [reference_level(self._spec, name) for name in names]
        return tuple(self.levels[n][0] if level is None else level for n, level in zip(names, found, strict=True))

    def check(self, names: Sequence[str], argument: str) -> None:
        """Refuse what the grid does not vary."""
        for name in names:
            if name in self.means:
                raise LMMError(
                    f"{argument}: {name!r} is numeric; say at which values to predict, e.g. at={{{name!r}: "
                    f"[{self.means[name]:.6g}]}}"
                )
            if "~" in str(name):
                raise LMMError(
                    f"{argument}: {name!r} is a formula; give names of factors, with contrasts='pairwise' to compare"
                )
            if name not in self.levels:
                raise LMMError(f"{argument}: {name!r} is not a variable of the fixed part, which uses {self._names()}")

    def range_of(self, variable: Any) -> float:
        """Largest less smallest value of a numeric variable in the data, along which slopes can be taken.

        Raises
        ------
        LMMError
            For a variable that has levels, is not in the fixed part or does not vary.
        """
        known = self._spec.reference
        found = known.get(variable) if isinstance(variable, str) else None
        if isinstance(found, Numbers) and found.high > found.low:
            return found.high - found.low
        if isinstance(found, Numbers):
            raise LMMError(
                f"variable: {variable!r} is {found.low:.6g} in all rows and has no slope; name a variable that varies"
            )
        others = ", ".join(repr(name) for name, value in known.items() if isinstance(value, Numbers))
        if found is not None:
            remedy = f"compare its levels by emmeans({variable!r})" + (f", or choose one of {others}" if others else "")
        elif variable in self._spec.random_variables:
            remedy = "add it there, as the random slopes vary around a fixed one"
        else:
            remedy = f"choose one of {others}" if others else "add one to the formula, which has none"
        raise LMMError(f"variable: {variable!r} is not a numeric variable of the fixed part; {remedy}")

    def cells(self, names: Sequence[str]) -> dict[str, list[Any]]:
        """Levels of all combinations of some variables, the first varying fastest."""
        combinations = list(product(*(self.levels[name] for name in reversed(names))))
        return {name: [c[len(names) - 1 - i] for c in combinations] for i, name in enumerate(names)}

    def functions(self, names: Sequence[str], moved: Mapping[str, float] | None = None) -> Array:
        """The linear functions of the coefficients that are the marginal means.

        A column of X depends on the variables of its term only, so that each term is averaged over the levels of its
        own variables and not over the whole grid.

        Parameters
        ----------
        names : sequence of str
            Variables whose combinations make the means, the first varying fastest; the others are averaged over.
        moved : mapping, optional
            What to add to numeric variables.

        Returns
        -------
        (cells, p) array
        """
        terms = fixed_terms(self.model.design)
        varied = [frozenset(term.variables & self.levels.keys()) for term in terms]
        largest = [s for s in dict.fromkeys(varied) if not any(s < other for other in varied)]
        count = int(np.prod([len(self.levels[name]) for name in names]))
        out = np.empty((count, len(self.model.exog_names)))
        done: set[int] = set()
        for group in largest:
            others = sorted(group - set(names))
            rows = count * int(np.prod([len(self.levels[name]) for name in others], dtype=float))
            if rows * out.shape[1] > _LARGEST:
                raise LMMError(
                    f"the reference grid of {', '.join(map(repr, (*names, *others)))} has {rows} rows; select levels "
                    "with at="
                )
            design = self._design(self.cells([*names, *others]), rows, moved or {})
            design = design.reshape(-1, count, design.shape[1])
            if self.weights == "equal" or not others:
                mean = design.mean(axis=0)
            else:
                mean = np.einsum("oc,ocp->cp", self._cells.shares(self.weights, names, others), design)
            for t, term in enumerate(terms):
                if t not in done and varied[t] <= group:
                    done.add(t)
                    out[:, list(term.columns)] = mean[:, list(term.columns)]
        return out

    @cached_property
    def _cells(self) -> Cells:
        """Rows of the combinations of the levels of all factors."""
        every = {name: value for name, value in self._spec.reference.items() if isinstance(value, tuple)}
        whole = ReferenceGrid(self.model)  # with all levels, also of factors of which some were chosen
        codes = {}
        for name, levels in every.items():
            place = levels_of_rows(
                self.model, name, every, lambda cells: whole._design(cells, len(next(iter(cells.values()))), {})
            )
            chosen = [self.levels[name].index(level) if level in self.levels[name] else -1 for level in levels]
            codes[name] = np.array(chosen, dtype=np.intp)[place]
        return Cells(codes, {name: len(values) for name, values in self.levels.items()})

    def _design(self, cells: dict[str, list[Any]], rows: int, moved: Mapping[str, float]) -> Array:
        """Fixed-effects design of some combinations; variables that do not matter stand at their first level."""
        columns: dict[str, Any] = {}
        for name in self._spec.reference:
            if name in self.means:
                columns[name] = np.full(rows, self.means[name] + moved.get(name, 0.0))
                continue
            values = cells[name] if name in cells else [self.levels[name][0]] * rows
            if name in moved:
                columns[name] = np.array(values, dtype=float) + moved[name]
            else:
                columns[name] = self._column(name, values)
        if not columns:  # an intercept alone
            return np.ones((rows, len(self.model.exog_names)))
        return self._spec.fixed(columns)

    def _column(self, name: str, values: list[Any]) -> Any:
        """Values of a variable in the type that it had in the fit."""
        state = self._spec.states[1]
        encoding = None if state is None else state.encoder_state.get(name)
        if encoding is not None and encoding[0].value == "categorical":
            import pandas as pd

            return pd.Series(pd.Categorical(values, categories=list(encoding[1]["categories"])))
        array = np.array(values)
        if array.dtype.kind in "biufUM":
            return array
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array
