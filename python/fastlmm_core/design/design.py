"""Everything of a model but its response: columns, random-effects terms, weights, offset, names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..covariance.parameters import Block, CovarianceStructure
from ..errors import LMMError
from ..kernels.records.rows import SharedColumns
from ..support.records import at_once
from ..support.types import Array
from ..tables.columns import Table, native_frame
from ..tables.rows import CallerRows
from .grouping import Codes, Factor, Grouping, group_codes
from .residual import ResidualPart
from .terms import RandomPart

__all__ = ["Design", "Source", "Specification", "check_sigma"]


class Specification(Protocol):
    """What a design remembers of the formula that made it: how new data become columns."""

    @property
    def formula(self) -> str:
        """As written."""

    @property
    def library(self) -> str:
        """Library of the caller's table."""

    @property
    def offset_name(self) -> str | None:
        """Column of the offset, where it was given by name."""

    @property
    def weights_name(self) -> str | None:
        """Column of the weights, where they were given by name."""

    @property
    def reference(self) -> Mapping[str, Any]:
        """For each column of the fixed part its numbers or levels."""

    @property
    def unused(self) -> Mapping[str, tuple[Any, ...]]:
        """Levels that a categorical column declares but no row has, by column."""

    @property
    def gaps(self) -> Mapping[str, int]:
        """Number of missing values of the columns that have any."""

    @property
    def states(self) -> tuple[Any, ...]:
        """formulaic's ModelSpec of response, fixed part and each bar's left side."""

    @property
    def random_variables(self) -> tuple[str, ...]:
        """Columns of the data that the random part uses."""

    def fixed(self, new_data: Any) -> Array:
        """X of new data."""

    def random(self, new_data: Any, factors: Collection[str] | None = None) -> list[Array | None]:
        """Columns of each term on new data."""

    def group_labels(self, new_data: Any, factors: Collection[str] | None = None) -> dict[str, Array]:
        """Labels of each row of new data."""

    def offset(self, new_data: Any) -> Array | None:
        """Offset of new data."""

    def weights(self, new_data: Any) -> Array | None:
        """Weights of new data."""

    def response(self, new_data: Any) -> Array:
        """Response of new data."""

    def has_response(self, new_data: Any) -> bool:
        """Whether new data hold the response."""


@dataclass(frozen=True, eq=False)
class Source:
    """Of what a formula made a design.

    Attributes
    ----------
    table : table
        The caller's table itself, not copied, for columns that are asked for by name later.
    options : mapping
        What else was given for the model: weights, offset, structures, as given.
    """

    table: Any
    options: Mapping[str, Any]


@at_once
@dataclass(frozen=True, eq=False)
class Design:
    """Everything of a model but its response.

    Attributes
    ----------
    exog : (n, p) array
        Columns of the fixed effects.
    random : RandomPart
        Random-effects terms.
    exog_names : (p,) tuple of str
    weights, offset : (n,) arrays or None
    spec : Specification or None
        The formula; None for a design from arrays.
    response_name : str
    n_dropped : int
        Rows of the caller's table left out for missing values.
    kept : (n,) int array or None
        Positions of the rows in the caller's table, None for all of them.
    groupings : tuple of Grouping or None
        The grouping factors, counted, where the rows have been read already.
    index : pandas.Index or None
        Labels of all rows of the caller's table, where it has any.
    source : Source or None
        Of what a formula made the design.  It is not pickled.
    residual : ResidualPart or None
        How the residuals of a subject vary together; None where they are independent.
    sigma : float or None
        Residual standard deviation of an observation of weight 1 where it is known; None where it is estimated.
    padded : bool
        Whether results by row have gaps for the rows of the table that were left out.
    """

    exog: Array
    random: RandomPart
    exog_names: tuple[str, ...]
    weights: Array | None = None
    offset: Array | None = None
    spec: Specification | None = None
    response_name: str = "y"
    n_dropped: int = 0
    kept: NDArray[np.intp] | None = None
    groupings: tuple[Grouping, ...] | None = None
    index: Any = None
    source: Source | None = None
    residual: ResidualPart | None = None
    padded: bool = False
    sigma: float | None = None

    def origin(self, data: Any = None) -> Source:
        """Of what the design was made, with other data where they are given.

        Raises
        ------
        LMMError
            For a design from arrays, or one from a pickle or a file where what is needed did not travel with it.
        """
        if self.spec is None:
            raise LMMError("the model is from arrays and has no formula; make another with LinearMixedModel(...)")
        if self.source is not None:
            return self.source if data is None else replace(self.source, table=data)
        if data is None:
            raise LMMError("data is missing: a model from a pickle or a file has lost its table; give data=")
        part = self.residual
        options = {
            "offset": self.spec.offset_name,
            "residual": None if part is None else part.written,
            "variance": None if part is None or part.variance is None else part.variance.text,
            "sigma": self.sigma,
        }
        lost = [name for name in ("weights", "offset") if getattr(self, name) is not None and not options.get(name)]
        if lost:
            raise LMMError(f"a model from a pickle or a file has lost {' and '.join(lost)}; make it with lmm() anew")
        return Source(data, options)

    def source_table(self) -> Table | None:
        """The caller's table, where there is one that still has the rows of which the design was made."""
        if self.source is None:
            return None
        table, index = Table(self.source.table), self.index
        moved = table.library == "pandas" and index is not None and not index.equals(table.index)
        return None if moved or table.n_rows != self.caller_rows.count else table

    def column(self, name: str, argument: str) -> Array:
        """A column of the caller's table over the rows used (n,).

        Raises
        ------
        LMMError
            Where there is no such table, or no such column.
        """
        table = self.source_table()
        if table is None:
            raise LMMError(
                f"{argument}={name!r}: the table of the model is not there; give the values, one for each row"
            )
        return np.asarray(table.column(name, f"{argument}=").raw)[self.caller_rows.positions]

    def count(self, groupings: tuple[Grouping, ...]) -> None:
        """Keep the grouping factors as counted by whoever read the rows first."""
        if self.groupings is None:
            object.__setattr__(self, "groupings", groupings)

    @property
    def shared_columns(self) -> SharedColumns | None:
        """What the kernels found of the columns, for further responses; None where they have not, or cannot."""
        return self.__dict__.get("_shared_columns")

    @cached_property
    def ordinary(self) -> bool:
        """Whether residuals are independent, of unknown variance, and the covariances of random effects are free."""
        return self.residual is None and self.sigma is None and not self.structure.restricted

    def keep_columns(self, columns: SharedColumns) -> None:
        """Keep what the kernels found of the columns."""
        object.__setattr__(self, "_shared_columns", columns)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"source": None, "_shared_columns": None}

    def check(self, n: int, given: bool = False) -> None:
        """Refuse what cannot belong to n observations.

        Parameters
        ----------
        n : int
        given : bool
            Whether the parameters are: then one level, or few observations, will do.

        Raises
        ------
        LMMError
            For arrays of another length, weights that are not positive, a factor of one level, or more columns in X
            than observations.
        """
        asked = (n, given)
        if self.__dict__.get("_checked") == asked:
            return
        for name, values in (
            ("X", self.exog),
            ("Z", self.random.parts[0]),
            ("groups", self.random.codes[0].codes),
            ("weights", self.weights),
            ("offset", self.offset),
            ("residual", None if self.residual is None else self.residual.where),
        ):
            if values is not None and len(values) != n:
                raise LMMError(f"{name} has {len(values)} rows but y has {n}; give one row per observation")
        if self.weights is not None and not (self.weights > 0.0).all():
            row = int(np.flatnonzero(~(self.weights > 0.0))[0])
            raise LMMError(
                f"weights must be positive (first other: {self.weights[row]} at row {row}); remove such rows"
            )
        if self.sigma is not None:
            check_sigma(self.sigma, self.structure)
            if self.residual is not None:
                raise LMMError(f"sigma is for independent residuals, and these have the structure {self.residual.term}")
        if not given:
            self._check_estimable(n)
        object.__setattr__(self, "_checked", asked)

    def _check_estimable(self, n: int) -> None:
        """Refuse one level of a factor, and fewer observations than fixed effects."""
        for read in self.random.codes:
            if read.n_slots == 1 and self.structure.q:
                raise LMMError(
                    f"the grouping factor {read.name!r} has one level: its variance cannot be estimated; "
                    "use ordinary regression or another factor"
                )
        if n <= self.exog.shape[1]:
            raise LMMError(f"there are {n} observations for {self.exog.shape[1]} fixed effects; use fewer columns in X")

    # ---- the random part -----------------------------------------------------------------------

    @property
    def exog_re(self) -> Array:
        """Columns of the random effects of all terms (n, q)."""
        return self.random.Z

    @property
    def structure(self) -> CovarianceStructure:
        """Covariance of the random effects."""
        return self.random.structure

    @property
    def exog_re_names(self) -> tuple[str, ...]:
        """Names of the columns of the random effects."""
        return self.random.columns

    @property
    def term_names(self) -> tuple[str, ...]:
        """Names of the random-effects terms."""
        return self.random.term_names

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        """The grouping factors, that with most levels first."""
        counted = tuple(read.count() for read in self.random.codes) if self.groupings is None else self.groupings
        return tuple(Factor(g, span.start, span.stop) for g, span in zip(counted, self.random.spans, strict=True))

    @property
    def grouping(self) -> Grouping:
        """The grouping factor, that with most levels where there are several."""
        return self.factors[0].grouping

    def factor(self, name: str | None = None) -> Factor:
        """A grouping factor by name, by default that with most levels.

        Raises
        ------
        LMMError
            For an unknown name.
        """
        found = [f for f in self.factors if name in (None, f.grouping.name)]
        if not found:
            names = " or ".join(repr(f.grouping.name) for f in self.factors)
            raise LMMError(f"factor={name!r} is not a grouping factor: use {names}")
        return found[0]

    def factor_of(self, block: Block) -> Factor:
        """The grouping factor of a term."""
        return next(factor for factor in self.factors if factor.start <= block.start < factor.stop)

    # ---- the caller's tables -------------------------------------------------------------------

    @property
    def labelled(self) -> bool:
        """Whether results are labelled: the design was made from a table, or from Series of pandas."""
        return self.spec is not None or self.index is not None

    @property
    def library(self) -> str:
        """Library of the caller's data: "pandas", "polars", "pyarrow" or "dict", also for a design from arrays."""
        if self.spec is None:
            return "dict" if self.index is None else "pandas"
        return self.spec.library

    @property
    def caller_rows(self) -> CallerRows:
        """The rows of the caller's table that the design has."""
        count = len(self.exog) + self.n_dropped if self.index is None else len(self.index)
        return CallerRows(self.library, self.index, self.kept, count, self.padded)

    def table(self, columns: Mapping[str, Any]) -> Any:
        """A table of results in the library of the caller's data; a dict of arrays for a design from arrays."""
        return native_frame(self.library, columns)

    # ---- other designs -------------------------------------------------------------------------

    def rows(self, rows: Any, levels: tuple[NDArray[np.intp], ...] | None = None) -> Design:
        """The design of some rows, or of rows several times over.

        Parameters
        ----------
        rows : slice or int array
        levels : tuple of int arrays, optional
            The level of each of these rows in each factor, 0 to m - 1, all used; by default those that they have, of
            which the ones without rows are left out.
        """
        copy = None
        if levels is None:
            codes = tuple(f.grouping.of_rows(rows) for f in self.factors)
        else:
            copy = _occurrences(rows)
            codes = tuple(
                Codes(f.grouping.name, level.astype(np.int64), 0, int(level.max()) + 1)
                for f, level in zip(self.factors, levels, strict=True)
            )
        return replace(
            self,
            exog=self.exog[rows],
            random=replace(self.random, parts=(self.exog_re[rows],), codes=codes),
            weights=None if self.weights is None else self.weights[rows],
            offset=None if self.offset is None else self.offset[rows],
            n_dropped=0,
            padded=False,
            kept=(np.arange(len(self.exog)) if self.kept is None else self.kept)[rows],
            groupings=None,
            residual=None if self.residual is None else self.residual.rows(rows, copy),
        )

    def other(
        self,
        exog: Array,
        Z: Array,
        labels: Mapping[str, NDArray[Any]],
        weights: Array | None,
        offset: Array | None,
        residual: ResidualPart | None = None,
        index: Any = None,
    ) -> Design:
        """The same columns and terms on other rows, with their labels in each grouping factor.

        Without random effects these are the subjects of `residual`.
        """
        if residual is not None and not self.structure.q:
            codes: tuple[Codes, ...] = (residual.subject,)
        else:
            codes = tuple(group_codes(labels[f.grouping.name], f.grouping.name) for f in self.factors)
        if len(codes) > 1:
            codes = tuple(read.dense() for read in codes)
        return replace(
            self,
            exog=exog,
            random=replace(self.random, parts=(Z,), codes=codes),
            weights=weights,
            offset=offset,
            n_dropped=0,
            padded=False,
            kept=None,
            groupings=None,
            index=index,
            source=None,
            residual=residual,
        )

    def columns(self, chosen: Any) -> Design:
        """The design with some columns of X only."""
        names = tuple(np.array(self.exog_names, dtype=object)[chosen])
        return replace(self, exog=self.exog[:, chosen], exog_names=names)

    def with_columns(self, columns: Array, names: tuple[str, ...]) -> Design:
        """The design with more columns in X; from arrays, as no formula makes these columns."""
        joined = np.column_stack([self.exog, columns])
        return replace(self, exog=joined, exog_names=(*self.exog_names, *names), spec=None)

    def with_random(self, random: RandomPart) -> Design:
        """The design with other random effects; from arrays, as no formula makes them."""
        return replace(self, random=random, spec=None, groupings=None)


def check_sigma(sigma: float, structure: CovarianceStructure) -> None:
    """Refuse a known residual standard deviation that is none, or beside which G is not free.

    Raises
    ------
    LMMError
    """
    if not (0.0 < sigma < np.inf):
        raise LMMError(
            f"sigma={sigma!r} must be a positive number, the residual standard deviation; variances v of the rows are "
            "given as weights=1/v with sigma=1"
        )
    if structure.restricted:
        raise LMMError("sigma is for free variances and covariances of random effects: use us() or diag()")


def _occurrences(rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """How often each number has come before (n,)."""
    order = np.argsort(rows, kind="stable")
    _, starts, counts = np.unique(rows[order], return_index=True, return_counts=True)
    out = np.empty(len(rows), dtype=np.intp)
    out[order] = np.arange(len(rows)) - np.repeat(starts, counts)
    return out
