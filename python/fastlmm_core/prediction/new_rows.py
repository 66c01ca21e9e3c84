"""New rows of a fitted model, from tables or arrays, in the model's own columns."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError
from ..support.checks import float_array, plain_array, row_values
from ..support.hints import option
from ..support.types import Array
from ..tables.alignment import index_of, shared_index
from ..tables.columns import Table
from ..tables.rows import CallerRows

if TYPE_CHECKING:
    from ..design.grouping import Factor, Grouping
    from ..estimation.model import Model

__all__ = ["NewRows", "chosen_factors", "random_design", "read_rows", "refuse_unseen", "some_of"]


@dataclass(frozen=True)
class NewRows:
    """New rows in the caller's units.

    Attributes
    ----------
    X : (n, p) array
    Z : (n, q) array or None
        Over all factors in the model's order; zero for those that were not asked for.
    labels : dict of str to (n,) array
        Labels of the levels, by grouping factor; empty for the rows of the fit.
    offset, y, weights : (n,) arrays or None
    caller : CallerRows
        Where they stand in the caller's table.
    of_fit : bool
        Whether they are the rows of the fit.
    """

    X: Array
    Z: Array | None
    labels: dict[str, NDArray[Any]]
    offset: Array | None
    caller: CallerRows
    y: Array | None = None
    weights: Array | None = None
    of_fit: bool = False

    def distinct(self, grouping: Grouping) -> tuple[NDArray[Any], NDArray[np.intp]]:
        """The labels of a factor that occur, and the place of each row's among them."""
        if self.of_fit:
            return grouping.labels, grouping.index
        labels, index = np.unique(self.labels[grouping.name], return_inverse=True)
        return labels, index


def chosen_factors(model: Model, effects: Any) -> tuple[str, ...]:
    """Names of the grouping factors that `effects` asks for, in the model's order.

    Raises
    ------
    LMMError
        For anything but "population", "all", the name of a factor or a sequence of names.
    """
    names = tuple(f.grouping.name for f in model.factors)
    if isinstance(effects, str):
        if effects == "population":
            return ()
        if effects == "all":
            return names
        wanted: Collection[Any] = (effects,)
    elif isinstance(effects, Collection):
        wanted = effects
    else:
        wanted = (effects,)
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise LMMError(
            f"effects={effects!r} is unknown: use 'population', 'all', or the name of a grouping factor or a list of "
            f"names, of {', '.join(map(repr, names))}{option('effects', effects, ('population', 'all', *names))}"
        )
    return tuple(name for name in names if name in wanted)


def random_design(model: Model, data: Any, names: Collection[str] | None = None) -> Array:
    """Rows of Z of a formula model for new data in the model's order (n, q), zero for factors not in `names`."""
    assert model.spec is not None
    parts = model.spec.random(data, names)
    n = next(len(part) for part in parts if part is not None)
    Z = np.zeros((n, model.structure.q))
    for block, i in zip(model.structure.blocks, model.random.order, strict=True):
        part = parts[i]
        if part is not None:
            Z[:, block.start : block.stop] = part
    return Z


def read_rows(
    model: Model, data: Any, argument: str, designs: Collection[str], groups: Collection[str],
    response: bool = False, weights: bool = True,
) -> NewRows:  # fmt: skip
    """Read what is needed of new rows.

    Parameters
    ----------
    model : LinearMixedModel
    data : table, or mapping with "X", "Z", "groups" and "y" for models from arrays; None for the rows of the fit
        Series and DataFrames in a mapping of arrays have one index.
        With several factors "Z" is (n, q) over all of them in the model's order, or a mapping by factor, and "groups"
        is a mapping by factor.
    argument : str
        What messages call `data`.
    designs, groups : collections of str
        Grouping factors whose rows of Z, and whose labels, are needed.
    response : bool
        Whether y is needed.
    weights : bool
        Whether weights are wanted, where a table has the column that the model's weights are.

    Raises
    ------
    LMMError
        For columns or arrays that are missing or do not fit the model.
    """
    if data is None:
        return NewRows(model.exog, model.exog_re, {}, model.offset, model.design.caller_rows, of_fit=True)
    if model.spec is not None:
        table = Table(data, argument)
        fixed = model.spec.fixed(table)
        offset = model.spec.offset(table)
        w = model.spec.weights(table) if weights else None
        y = model.spec.response(table) if response else None
        Z = random_design(model, table, designs) if designs else None
        found_labels = model.spec.group_labels(table, groups) if groups else {}
        library = model.library if table.library == "dict" else table.library
        return NewRows(fixed, Z, found_labels, offset, CallerRows(library, table.index, None, len(fixed)), y, w)
    names = ["X"] + ["Z"] * bool(designs) + ["groups"] * bool(groups) + ["y"] * response
    listed = ", ".join(names)
    if not hasattr(data, "keys"):
        raise LMMError(f"{argument} must be a mapping with the arrays {listed}: the model was made from arrays")
    if "X" not in data:
        raise LMMError(f"{argument} has no 'X'; give the arrays {listed}")
    index = _index_of_arrays(data, argument)
    X = float_array(data["X"], f"{argument}['X']", 2)
    if X.shape[1] != len(model.exog_names):
        raise LMMError(f"{argument}['X'] must have {len(model.exog_names)} columns, not the shape {X.shape}")
    n = len(X)
    found: dict[str, Any] = {"['X']": X}
    Z = None
    if designs:
        Z = np.zeros((n, model.structure.q))
        for key, columns, values in _array_designs(model, data, argument, designs, n, listed):
            found[key] = values
            if len(values) == n:
                Z[:, columns] = values
    labels = {}
    for key, name, values in _array_groups(model, data, argument, groups, listed):
        found[key] = labels[name] = values
    if response:
        if "y" not in data:
            raise LMMError(f"{argument} has no 'y'; give the arrays {listed}")
        found["['y']"] = float_array(data["y"], f"{argument}['y']", 1)
    for key, values in found.items():
        if len(values) != n:
            raise LMMError(f"{argument}{key} has {len(values)} rows, {argument}['X'] has {n}")
        if "groups" not in key and not np.isfinite(values).all():
            row = int(np.argwhere(~np.isfinite(values))[0, 0])
            raise LMMError(f"{argument}{key} has values that are not finite (first: row {row}); remove these rows")
    offset = row_values(data["offset"], f"{argument}['offset']", n) if "offset" in data else None
    w = row_values(data["weights"], f"{argument}['weights']", n, True) if "weights" in data else None
    library = model.library if index is None else "pandas"
    return NewRows(X, Z, labels, offset, CallerRows(library, index, None, n), found.get("['y']"), w)


def _index_of_arrays(data: Any, argument: str) -> Any:
    """The index that the Series and DataFrames in a mapping of arrays have in common, None without any."""
    given: list[tuple[str, Any]] = []
    for key in data:
        values = data[key]
        parts = values.items() if isinstance(values, Mapping) else [(None, values)]
        given += [(f"{argument}[{key!r}]" + ("" if i is None else f"[{i!r}]"), index_of(part)) for i, part in parts]
    return shared_index(given)


def _intercepts(model: Model, factor: Factor) -> bool:
    return model.exog_re_names[factor.columns] == ("Intercept",)


def _array_designs(
    model: Model, data: Any, argument: str, designs: Collection[str], n: int, listed: str
) -> Sequence[tuple[str, slice, Array]]:
    """What there is of Z: key in `data`, columns of the model, values."""
    wanted = [f for f in model.factors if f.grouping.name in designs]
    given: Any = {}
    if "Z" in data:
        given = data["Z"]
    if not isinstance(given, Mapping):
        whole = float_array(given, f"{argument}['Z']", 2)
        if whole.shape[1] != model.structure.q:
            raise LMMError(f"{argument}['Z'] must have {model.structure.q} columns, not the shape {whole.shape}")
        return [("['Z']", slice(0, model.structure.q), whole)]
    found = []
    for factor in wanted:
        name, width = factor.grouping.name, factor.stop - factor.start
        if name not in given:
            if not _intercepts(model, factor):
                where = f"no {'Z'!r}" if "Z" not in data else f"no Z of {name!r} among those given by factor"
                raise LMMError(f"{argument} has {where}; give the arrays {listed}")
            found.append((f"['Z'][{name!r}]", factor.columns, np.ones((n, 1))))
            continue
        key = f"['Z'][{name!r}]"
        values = float_array(given[name], argument + key, 2)
        if values.shape[1] != width:
            raise LMMError(f"{argument}{key} must have {width} columns, not the shape {values.shape}")
        found.append((key, factor.columns, values))
    return found


def _array_groups(
    model: Model, data: Any, argument: str, groups: Collection[str], listed: str
) -> Sequence[tuple[str, str, NDArray[Any]]]:
    """Labels by factor: key in `data`, factor, values."""
    if not groups:
        return []
    if "groups" not in data:
        raise LMMError(f"{argument} has no 'groups'; give the arrays {listed}")
    given = data["groups"]
    if not isinstance(given, Mapping):
        if len(model.factors) > 1:
            named = ", ".join(f"{name!r}: labels" for name in groups)
            raise LMMError(f"{argument}['groups'] must be a mapping by grouping factor: {{{named}}}")
        return [("['groups']", model.grouping.name, plain_array(given, f"{argument}['groups']"))]
    found = []
    for name in groups:
        if name not in given:
            raise LMMError(f"{argument}['groups'] has no {name!r}: give the level of each row in this factor")
        place = f"['groups'][{name!r}]"
        found.append((place, name, plain_array(given[name], argument + place)))
    return found


def some_of(labels: list[Any]) -> str:
    """Some labels for a message."""
    shown = ", ".join(repr(label) for label in labels[:5])
    return shown if len(labels) <= 5 else f"{shown} and {len(labels) - 5} more"


def refuse_unseen(model: Model, missing: list[Any], name: str) -> None:
    """Refuse levels of which the model has no data.

    Raises
    ------
    LMMError
        Names some of the levels, and the remedy.
    """
    if missing and not model.has_response:
        raise LMMError(
            f"the model has no response, so that nothing is known of the levels of {name}: give observations of "
            f'{some_of(missing)} as observed=, or use new_levels="population" for the population value'
        )
    if missing:
        raise LMMError(
            f"data has levels of {name} that the model has not seen: {some_of(missing)}; use "
            'new_levels="population" for the population value, or give observations of them as observed='
        )
