"""Random effects that are kept: the BLUPs of a fit or values that are given, on its rows or on others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError
from ..simulation.draws import Fresh
from ..support.blas_threads import quiet_product
from ..support.checks import float_array, plain_array
from ..support.types import Array
from ..tables.columns import Table
from .new_rows import chosen_factors, some_of
from .other_rows import on_rows
from .structured_rows import residuals_left

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..design.grouping import Factor
    from ..estimation.fit import Fit
    from ..estimation.model import Model
    from .new_rows import NewRows

__all__ = ["Kept", "Source", "given_effects", "keeping", "places_of_given", "values_of_given"]


class Kept(NamedTuple):
    """Effects of some levels of a grouping factor.

    Attributes
    ----------
    labels : (m,) array
    values : (m, q) array
    """

    labels: NDArray[Any]
    values: Array

    def places(self, labels: NDArray[Any]) -> NDArray[np.intp]:
        """Positions of labels among those kept, -1 for others."""
        known = {label: i for i, label in enumerate(self.labels.tolist())}
        return np.array([known.get(label, -1) for label in labels.tolist()], dtype=np.intp)


@dataclass(frozen=True, eq=False)
class Source:
    """What responses are drawn from where effects are kept; see `simulation.draws.Generating`.

    Attributes
    ----------
    model : Model
        The rows.
    sigma2 : float
    relative_factor : (q, q) array
    phi : array
    population_mean : (n,) array
        With the effects that are kept.
    """

    model: Model
    sigma2: float
    relative_factor: Array
    phi: Array
    population_mean: Array


def given_effects(result: Fit, random_effects: Any) -> dict[str, Kept]:
    """Random effects as a caller gives them, by grouping factor.

    Parameters
    ----------
    result : LMMResult
    random_effects : table, (m, q) array, or mapping of grouping factor to either
        In the form of `LMMResult.random_effects`: a table has a column of labels with the name of the factor and one
        for each effect, in any order; an array has the levels of the fit in the order of its group_labels.

    Raises
    ------
    LMMError
        For factors, effects or levels that do not fit, levels given twice, and values that are not finite.
    """
    factors = {f.grouping.name: f for f in result.model.factors}
    if hasattr(random_effects, "keys") and set(random_effects) and set(random_effects) <= set(factors):
        return {name: _of_factor(result, factors[name], value) for name, value in random_effects.items()}
    if len(factors) > 1:
        raise LMMError(
            f"random_effects must be a mapping by grouping factor, of {', '.join(map(repr, factors))}, to tables as "
            "result.random_effects has them"
        )
    (factor,) = factors.values()
    return {factor.grouping.name: _of_factor(result, factor, random_effects)}


def _of_factor(result: Fit, factor: Factor, given: Any) -> Kept:
    name, names = factor.grouping.name, result.effect_names[factor.columns]
    if hasattr(given, "keys") or hasattr(given, "columns") or hasattr(given, "column_names"):
        table = Table(given, "random_effects")
        absent = [key for key in (name, *names) if key not in table]
        if absent:
            raise LMMError(
                f"random_effects has no column {absent[0]!r}: it needs the labels of {name!r} and the effects "
                f"{', '.join(map(repr, names))}"
            )
        codes, labels = table.column(name).codes(None)
        columns = [float_array(plain_array(table.column(key).raw, f"random_effects[{key!r}]"), key, 1) for key in names]
        values = np.column_stack(columns)
        labels = labels[codes]
    else:
        values, labels = float_array(given, "random_effects", 2), factor.grouping.labels
        if values.shape != (len(labels), len(names)):
            raise LMMError(
                f"random_effects must have the shape {(len(labels), len(names))}, a row for each level of {name!r} and "
                f"a column for each of {', '.join(map(repr, names))}, not {values.shape}"
            )
    if len(set(labels.tolist())) < len(labels):
        raise LMMError(f"random_effects has a level of {name!r} twice; give each once")
    if not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0, 0])
        raise LMMError(f"random_effects of {labels[row]!r} are not finite; give numbers, or leave the level out")
    return Kept(labels, values)


def keeping(
    result: Fit, data: Any, effects: Any, random_effects: Any, weights: Any = None, offset: Any = None
) -> tuple[Source, Fresh]:
    """What to draw from where some random effects are kept and the others are drawn.

    Parameters
    ----------
    result : LMMResult
    data : table, mapping of arrays, or None
        Other rows, by default those of the result.
    effects : {"population", "all"}, or name of a grouping factor or several
        Whose BLUPs are kept, for the levels that there are in the data of the result.
    random_effects : as for `given_effects`, or None
        Values that are kept instead.
    weights, offset : (n,) arrays, optional
        Of other rows.

    Returns
    -------
    Source
    fresh : Fresh
        Whether the effects of a row's level are drawn; and, of structured residuals, those of other rows given what
        has been observed of their subjects, where all BLUPs are kept.
    """
    model = result.model if data is None else on_rows(result.model, data, weights, offset)
    chosen = chosen_factors(result.model, effects)
    kept: Mapping[str, Kept]
    if random_effects is None:
        places = {f.grouping.name: i for i, f in enumerate(result.model.factors)}
        kept = {name: Kept(result.model.factor(name).grouping.labels, result.blups[places[name]]) for name in chosen}
    elif chosen:
        raise LMMError("give effects= (whose BLUPs are kept) or random_effects= (the values that are kept), not both")
    else:
        kept = given_effects(result, random_effects)
    mean = quiet_product(model.exog, np.nan_to_num(result.beta))
    if model.offset is not None:
        mean = mean + model.offset
    fresh = np.ones((model.nobs, len(model.factors)), dtype=bool)
    for i, f in enumerate(model.factors):
        if f.grouping.name not in kept:
            continue
        own = kept[f.grouping.name]
        place = own.places(f.grouping.labels)[f.grouping.index]
        fresh[:, i] = place < 0
        part = np.einsum("ij,ij->i", model.exog_re[:, f.columns], own.values[place])
        mean = mean + np.where(fresh[:, i], 0.0, part)
    correlate = None
    if data is not None and effects == "all" and model.residual is not None:
        told, correlate = residuals_left(result, model)
        mean = mean + told
    return Source(model, result.sigma2, result.relative_factor, result.phi, mean), Fresh(fresh, correlate)


def places_of_given(model: Model, rows: NewRows, given: dict[str, Kept], new_levels: str) -> list[NDArray[np.intp]]:
    """Position of each row's level in each factor among those given, -1 for none."""
    levels: list[NDArray[np.intp]] = []
    for f in model.factors:
        name = f.grouping.name
        if name not in given:
            levels.append(np.full(len(rows.X), -1, dtype=np.intp))
            continue
        labels, index = rows.distinct(f.grouping)
        at = given[name].places(labels)
        if new_levels == "error" and (at < 0).any():
            raise LMMError(
                f"data has levels of {name} that random_effects does not have: {some_of(labels[at < 0].tolist())}; use "
                'new_levels="population" for the population value'
            )
        levels.append(at[index])
    return levels


def values_of_given(model: Model, given: dict[str, Kept]) -> tuple[Array, ...]:
    """The values given, an (m, q) array per grouping factor."""
    nothing = [np.zeros((1, f.stop - f.start)) for f in model.factors]
    return tuple(
        given[f.grouping.name].values if f.grouping.name in given else none
        for f, none in zip(model.factors, nothing, strict=True)
    )
