"""What all workers have to know of a model, and the only thing they do."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from ..design.streamed import random_without_rows
from ..engines.nested.shared import shared_scales
from ..engines.one_factor.reading import ArrayRows
from ..errors import LMMError
from ..kernels.records.rows import RowColumns, Rows
from .cross_products import CrossProducts
from .labels import CellSlots
from .recipe import Recipe, Seen
from .reduce import chunks, constant_values, first_chunk, line_length, room_for_lines, sum_chunks
from .source import Scan, ahead, scan
from .wanted import Wanted, learn

__all__ = ["Plan", "candidates", "make_plan", "plan_of"]


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """What turns rows into cross-products that add up: made once by `plan`, sent to all workers (it can be pickled).

    Attributes
    ----------
    recipe : Recipe
        The formula with the states of all rows.
    columns : RowColumns
        Shifts and scales, powers of two.
    values : (float, float)
        Of the constant columns of X and Z.
    fingerprint : str
        Of all of these: sums of different plans cannot be merged.
    """

    recipe: Recipe
    columns: RowColumns
    values: tuple[float, float]
    fingerprint: str

    @property
    def formula(self) -> str:
        """The formula as written."""
        return self.recipe.formula

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns of the data in use."""
        return self.recipe.columns

    @property
    def factors(self) -> tuple[str, ...]:
        """The grouping factors."""
        return self.recipe.shared.names

    def chunks(self, source: Scan, slots: CellSlots, seen: Seen) -> Iterator[Rows]:
        """The rows of a source in chunks, made in another thread; the arrays of one are overwritten after the next."""
        return ahead(chunks(self.recipe, source.tables(list(self.recipe.columns)), slots, seen))

    def reduce(self, batches: Any, key: Any) -> CrossProducts:
        """Cross-products of some rows.

        Parameters
        ----------
        batches : Scan, table, iterable of tables, or anything that `scan` takes
            One fragment of the data; it is read once, and its rows are not kept.
        key : str, int or tuple of these
            Name of the fragment: sums in which it occurs twice are refused.

        Returns
        -------
        CrossProducts
            Also of no rows.

        Raises
        ------
        LMMError
            For rows that the formula cannot turn into columns.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> data = flc.datasets.load("sleepstudy")
        >>> plan = flc.plan("Reaction ~ Days + (Days | Subject)", data)
        >>> parts = [plan.reduce(data.iloc[:77], key=0), plan.reduce(data.iloc[77:], key=1)]
        >>> result = flc.lmm(plan, flc.merge(parts)).fit()
        >>> round(result.criterion, 4)
        1743.6283
        """
        slots, seen = CellSlots(self.factors), Seen.nothing()
        p, q = len(self.columns.beta0), self.columns.z_scale.shape[1]
        source = scan(batches)
        room = room_for_lines(source.memory, slots, line_length(p, q))
        sums = sum_chunks(self.chunks(source, slots, seen), self.columns, None, self.values, p, q, room)
        levels, cells, order = slots.levels()
        return CrossProducts(
            self.fingerprint,
            (key,),
            levels,
            cells,
            sums.raw[order],
            sums.packed,
            sums.gram,
            sums.constant,
            sums.varies,
            sums.log_weights,
            sums.first_y,
            seen,
        )

    def __repr__(self) -> str:
        return f"<Plan: {self.formula!r}, fingerprint {self.fingerprint[:8]}>"


def make_plan(
    formula: str,
    source: Scan,
    weights: str | None,
    offset: str | None,
    missing: str,
    levels: Mapping[str, Iterable[Any]],
    see_all: Callable[[Wanted], None] | None = None,
) -> Plan:
    """The plan for a source; `see_all` shows all rows to its argument, by default it reads them here."""
    for argument, name in (("weights", weights), ("offset", offset)):
        if name is not None and not isinstance(name, str):
            raise LMMError(f"{argument} must be the name of a column of the data: rows that are read in pieces have it")
    names = candidates(formula, weights, offset)
    known = {name: list(values) for name, values in levels.items()}

    def here(wanted: Wanted) -> None:
        for table in ahead(source.tables(names)):
            wanted.see(table)

    try:
        recipe = learn(formula, source.look(names), see_all or here, weights, offset, missing, known)
    except LMMError:
        if not source.once:
            # once more with all columns, for a message that may list them
            for table in islice(source.look(), 1):
                Wanted(formula, weights, offset, known).ask(table)
        raise
    return plan_of(recipe, first_chunk(recipe, source.look(list(recipe.columns))))


def plan_of(recipe: Recipe, head: Rows) -> Plan:
    """The plan of a recipe, with shifts and scales by the first rows."""
    columns = shared_scales(ArrayRows(head), recipe.shared.which, random_without_rows(recipe.terms).structure)
    return Plan(recipe, columns, constant_values(head, columns), _fingerprint(recipe, columns))


def candidates(formula: str, weights: str | None, offset: str | None) -> list[str]:
    """Names in a formula that may be columns."""
    from ..formula.syntax import parse

    parsed = parse(formula)
    sides = [parsed.response, parsed.fixed, *(bar.left for bar in parsed.bars)]
    names = [name for side in sides for name, _ in side.names] + [n for bar in parsed.bars for n in bar.factors]
    return list(dict.fromkeys([*names, *(name for name in (weights, offset) if name is not None)]))


def _fingerprint(recipe: Recipe, columns: RowColumns) -> str:
    """A digest of what decides what is summed."""
    digest = hashlib.sha256()
    states = [
        None
        if state is None
        else (
            sorted(state.transform_state.items()),
            {e: enc.get("categories") for e, (_, enc) in state.encoder_state.items()},
        )
        for state in recipe.states
    ]
    shown = (recipe.formula, recipe.weights, recipe.offset, recipe.missing, recipe.x_names, recipe.terms, states)
    digest.update(repr(shown).encode())
    for part in columns:
        digest.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return digest.hexdigest()
