"""Responses on one design with observations, weights, an offset or covariates of their own: a problem each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...design.design import Design
from ...design.ownership import Seals, sealed
from ...design.terms import RandomPart
from ...errors import LMMError
from ...formula.coding import FixedTerm
from ...kernels.records.stacks import RowsOfDesign, SharedLines
from ...kernels.stacks import ProblemStack
from ...support.checks import plain_array
from ...support.types import Array
from ...tables.responses import ResponseColumns, is_table
from ...tables.stored import stored
from ..model import Model
from .covariate_lanes import shared_lines
from .covariates import at_means, terms_with_covariates
from .flat_rows import FlatRows
from .parts import same_design
from .stack import same_values, search_of

__all__ = ["ResponseStack", "for_lanes", "shaped_like"]


def for_lanes(model: Model) -> bool:
    """Whether the lanes fit problems of such a design: one grouping factor, independent residuals."""
    return len(model.design.random.codes) == 1 and model.residual is None and not model.structure.restricted


def shaped_like(Y: Array, values: Any, name: str, model: Model) -> Array:
    """Values for each observation of each response (n_responses, n), or of all (1, n).

    Raises
    ------
    LMMError
        For another shape or type.
    """
    if isinstance(values, Iterator) or (isinstance(values, (list, tuple)) and any(np.ndim(v) == 2 for v in values)):
        blocks = [_plain(block, name, model) for block in values]
        array = np.concatenate(blocks) if blocks else np.empty((0, Y.shape[1]))
    else:
        array = _plain(values, name, model)
    if array.shape not in (Y.shape, (1, Y.shape[1])):
        turned = array.shape == Y.shape[::-1]
        remedy = "transpose it" if turned else f"give values for each observation of Y, {Y.shape}"
        raise LMMError(f"{name} has the shape {array.shape}, and Y has {Y.shape}; {remedy}")
    return np.ascontiguousarray(array, dtype=np.float64)


def _plain(values: Any, name: str, model: Model) -> NDArray[Any]:
    """Numbers of a table, a masked array, an array or what is stored elsewhere, in two dimensions."""
    rows = model.design.caller_rows
    if is_table(values):
        table = ResponseColumns(values, rows, name)
        values = table[np.arange(len(table))]
    elif not isinstance(values, np.ndarray) and hasattr(values, "shape"):
        found = stored(values, rows, name) if np.shape(values)[:1] != (1,) else None
        values = values if found is None else found[:]
    elif isinstance(values, np.ma.MaskedArray):
        values = np.where(np.ma.getmaskarray(values), np.nan, values.data)
    array = plain_array(values, name)
    if array.dtype.kind not in "fiub":
        raise LMMError(f"{name} must hold numbers, not {array.dtype}")
    return np.atleast_2d(array)


class ResponseStack:
    """Responses on one design, each with values of its own.

    Parameters
    ----------
    model : Model
        The lanes take those with one grouping factor; the responses of others are fitted by themselves.
    Y : (n_responses, n) array
        NaN where missing.
    labels : (n_responses,) array
    weights, offset : (n_responses, n) or (1, n) arrays or None
        In place of those of the model.
    covariates : mapping of str to arrays of these shapes
        Further columns of X.  ``"gm:age"`` is the product of the values given with the column age of X.

    Attributes
    ----------
    design : Design
        With the names of all columns; `exog` has those that all responses share.
    """

    one = "response"

    def __init__(
        self,
        model: Model,
        Y: Array,
        labels: NDArray[Any],
        weights: Array | None,
        offset: Array | None,
        covariates: Mapping[str, Array],
    ) -> None:
        design = model.design
        self.of_model, self.kind, self.Y, self.labels = model, type(model), np.ascontiguousarray(Y), labels
        self.n_rows = self.Y.size
        self.seals: Seals | None = None
        # values that responses share are those of the model, or none
        self.own = [values for values in (weights, offset) if values is not None]
        self.weights = design.weights[None] if weights is None and design.weights is not None else weights
        self.offset = design.offset[None] if offset is None and design.offset is not None else offset
        self.covariates = dict(covariates)
        for name in covariates:
            if not isinstance(name, str):
                raise LMMError(f"covariates: the name {name!r} is no text; give {{'name': values}}")
        self.factors = [_factor(name, design.exog_names) for name in covariates]
        self.design = replace(
            design, exog_names=(*design.exog_names, *covariates), spec=None if covariates else design.spec
        )
        read = design.random.codes[0]
        exog = design.exog
        shared = design.exog_re is exog or np.array_equal(design.exog_re, exog)
        self.kernel: ProblemStack | None = None
        if not for_lanes(model):
            return
        self.kernel = ProblemStack(
            RowsOfDesign(
                X=exog,
                Z=exog if shared else design.exog_re,
                codes=np.ascontiguousarray(read.codes, dtype=np.int64),
                base=read.base,
                n_slots=read.n_slots,
                Y=self.Y,
                weights=None if self.weights is None else np.ascontiguousarray(self.weights),
                offset=None if self.offset is None else np.ascontiguousarray(self.offset),
                extra=list(self.covariates.values()),
                factor=self.factors,
            ),
            search_of(design.structure),
        )

    def __len__(self) -> int:
        return len(self.Y)

    def lines(self) -> SharedLines | None:
        """What responses with all of their rows share, where covariates are all that is their own."""
        if self.kernel is None or self.own:
            return None
        return shared_lines(self.of_model, self.factors, len(self))

    def seal(self) -> None:
        """Watch over what is the caller's."""
        given = {"Y": self.Y, "weights": self.weights, "offset": self.offset}
        self.seals = sealed({**given, **{f"covariates[{name!r}]": v for name, v in self.covariates.items()}}.items())

    def present(self, i: int) -> NDArray[np.bool_]:
        """Which rows of the design a response has (n,)."""
        own = [self.Y, self.weights, self.offset, *self.covariates.values()]
        return np.asarray(~np.any([np.isnan(_line(values, i)) for values in own if values is not None], axis=0))

    def _own(self, chosen: NDArray[np.intp]) -> list[Array]:
        """Weights, offset and covariates of some of the responses; empty arrays for what there is not."""
        found = (self.weights, self.offset, *self.covariates.values())
        return [np.empty((0, 0)) if v is None else np.atleast_2d(v[chosen] if len(v) > 1 else v) for v in found]

    def flat(self, chosen: NDArray[np.intp]) -> FlatRows:
        """The observations that some of the responses have."""
        design = self.of_model.design
        there = np.array([self.present(i) for i in chosen.tolist()], dtype=bool)
        response, row = np.nonzero(there.reshape(len(chosen), self.Y.shape[1]))
        own = [v[response if len(v) > 1 else np.zeros_like(response), row] if v.size else None
               for v in self._own(chosen)]  # fmt: skip
        extra = [
            values * (1.0 if factor < 0 else design.exog[row, factor])
            for values, factor in zip(own[2:], self.factors, strict=True)
            if values is not None
        ]
        read = design.random.codes[0]
        X = design.exog[row]
        return FlatRows.sorted_by_group(
            (np.column_stack([X, *extra]) if extra else X, design.exog_re[row], self.Y[chosen[response], row]),
            (own[0], own[1]), (response, np.asarray(read.codes[row] - read.base)), (row, row),
            (self.Y.shape[1], len(chosen)),
        )  # fmt: skip

    def some(self, chosen: NDArray[np.intp]) -> ResponseStack:
        """Some of the responses, in this order."""
        weights, offset, *covariates = self._own(chosen)
        return ResponseStack(
            self.of_model, self.Y[chosen], self.labels[chosen], None if self.weights is None else weights,
            None if self.offset is None else offset, dict(zip(self.covariates, covariates, strict=True)),
        )  # fmt: skip

    def joined(self, stacks: Sequence[Any]) -> ResponseStack:
        """The responses of several stacks on one design, one after the other.

        Raises
        ------
        LMMError
            For other designs or covariates.
        """
        if not all(same_design(self.of_model, one.of_model) for one in stacks):
            raise LMMError("the results are on different designs; use one model's fit_many for all")
        if any(list(one.covariates) != list(self.covariates) for one in stacks):
            raise LMMError("the results have different covariates")

        def lines(values: list[Any], fill: float = 0.0) -> Any:
            if all(v is None for v in values):
                return None
            known = [
                np.broadcast_to(fill if v is None else v, one.Y.shape) for v, one in zip(values, stacks, strict=True)
            ]
            return np.concatenate(known)

        covariates = {name: lines([one.covariates[name] for one in stacks]) for name in self.covariates}
        return ResponseStack(
            self.of_model, np.concatenate([one.Y for one in stacks]), np.concatenate([one.labels for one in stacks]),
            lines([one.weights for one in stacks], 1.0), lines([one.offset for one in stacks]), covariates,
        )  # fmt: skip

    def same(self, other: Any) -> bool:
        """Whether another stack holds the same responses, with the same values of their own."""
        if not isinstance(other, ResponseStack) or not same_design(self.of_model, other.of_model):
            return False
        if list(self.covariates) != list(other.covariates):
            return False
        own, others = ((s.Y, s.labels, s.weights, s.offset, *s.covariates.values()) for s in (self, other))
        return all(same_values(a, b) for a, b in zip(own, others, strict=True))

    def terms(self) -> tuple[FixedTerm, ...]:
        """Terms of the fixed part, those of covariates last."""
        return terms_with_covariates(self.of_model.design, list(self.covariates), self.factors)

    def at_means(self, params: Array) -> tuple[ResponseStack, Array]:
        """The same problems with covariates less their means, and the coefficients of these (see `covariates`)."""
        there = np.array([self.present(i) for i in range(len(self))]).reshape(self.Y.shape)
        moved, out = at_means(self.of_model.exog, self.covariates, self.factors, there, params)
        return ResponseStack(self.of_model, self.Y, self.labels, self.weights, self.offset, moved), out

    def whole(self) -> Model:
        """The model of all rows; with covariates that of the response that has most of them, whatever its values."""
        if not self.covariates:
            return self.of_model.fittable()
        counts = [int(self.present(i).sum()) for i in range(len(self))]
        return self.kind.of(self._design(int(np.argmax(counts)))[0], None, True).fittable()

    def with_random(self, random: RandomPart) -> ResponseStack:
        """The same responses with other random effects of the same groups."""
        model = self.kind.of(self.of_model.design.with_random(random), None)
        out = ResponseStack(model, self.Y, self.labels, self.weights, self.offset, self.covariates)
        out.seals = self.seals
        return out

    def model(self, i: int) -> Model:
        """The model of one response, of the rows that it has.

        Raises
        ------
        LMMError
            For a response that cannot be fitted.
        """
        own, rows = self._design(i)
        y = self.Y[i, rows]
        if np.isinf(y).any():
            raise LMMError("it has infinite values")
        return self.kind.of(own, y)

    def _design(self, i: int) -> tuple[Design, NDArray[np.intp]]:
        """The design of the rows that a response has, and these."""
        rows = np.flatnonzero(self.present(i))
        if not len(rows):
            raise LMMError("all observations are missing")
        own = self.of_model.design.rows(rows)
        columns = [
            _line(values, i)[rows] * (1.0 if factor < 0 else own.exog[:, factor])
            for values, factor in zip(self.covariates.values(), self.factors, strict=True)
        ]
        if columns:
            own = own.with_columns(np.column_stack(columns), tuple(self.covariates))
        own = replace(
            own,
            weights=None if self.weights is None else _line(self.weights, i)[rows],
            offset=None if self.offset is None else _line(self.offset, i)[rows],
        )
        return own, rows


def _line(values: Array, i: int) -> Array:
    """Those of one response."""
    return np.asarray(values[i if len(values) > 1 else 0])


def _factor(name: str, columns: tuple[str, ...]) -> int:
    """Column of X by which a covariate is multiplied, -1 for none.

    Raises
    ------
    LMMError
        For an unknown column, or a name that X has already.
    """
    if name in columns:
        raise LMMError(f"covariates: X has a column {name!r} already; take another name")
    if ":" not in name:
        return -1
    factor = name.partition(":")[2]
    if factor not in columns:
        raise LMMError(f"covariates: {name!r} is a product with {factor!r}, and X has the columns {', '.join(columns)}")
    return columns.index(factor)
