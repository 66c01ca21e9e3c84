"""Permutation tests of fits of which each has a design of its own; see `permutation`.

All permutations are drawn for the places of observations, and each fit takes what a permutation says of the places that
it has: the order of random keys, and the signs of blocks.  Fits of the same places are rearranged alike.

With variances kept, a response enters the statistic through V^-1/2 y, of which t is the length along one direction of
the columns V^-1/2 X, and the residual sum of squares what is left beside all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import LMMError
from ...estimation.many.stack import Problems, Stack, numbered
from ...estimation.many.stack_fit import StackFit, fit_stack
from ...support.seeds import Seed, key_of, stream
from ...support.types import Array
from ..hypotheses import Hypothesis, parse_hypothesis
from ..wald import check_estimable
from .permutation import STACK, Permutations, Reduce, null_space, permuted
from .rearrangements import Rearrangement, block_codes, check_scheme, signs
from .symmetric_roots import SymmetricRoots, inner_roots

if TYPE_CHECKING:
    from ...design.design import Design
    from ...estimation.many.flat_rows import FlatRows

__all__ = ["Source", "own_permute"]


@dataclass(frozen=True, eq=False)
class Source:
    """What is permuted.

    Attributes
    ----------
    stack : Problems
    params : (n, p) array
        Estimates, NaN for dropped columns.
    fitted : (n,) bool array
    reml : bool
    empty : callable
        Fits of a stack that are yet to be made.
    statistic : callable
        t or F (n,) of a hypothesis, of such fits.
    """

    stack: Problems
    params: Array
    fitted: NDArray[np.bool_]
    reml: bool
    empty: Callable[[Problems], StackFit]
    statistic: Callable[[Any, Hypothesis], Array]


def own_permute(
    source: Source, hypothesis: Any, n: int, scheme: str, blocks: Any, *, reduce: Reduce | None, refit: bool,
    seed: Seed, n_jobs: int | None,
) -> Permutations:  # fmt: skip
    """See `OwnDesigns.permute`."""
    check_scheme(scheme, n)
    under = _Null(source, hypothesis, scheme == "freedman-lane", n_jobs)
    make = _rearrangements(scheme, under.flat, _blocks(under, scheme, blocks), seed)

    def maps(numbers: range) -> Array:
        return under.statistic([make(i) for i in numbers], refit)

    observed = under.statistic([Rearrangement(None, None)], refit)[0]
    size = max(1, STACK // max(1, len(under.flat.y)))
    return permuted(observed, maps, n, size, reduce, scheme)


def _blocks(under: _Null, scheme: str, blocks: Any) -> NDArray[np.intp] | None:
    """Number of the block of each row among the blocks of its problem; None: all rows are exchangeable."""
    flat = under.flat
    if blocks is None:
        if scheme == "freedman-lane":
            return None
        code = flat.group
    else:
        code = block_codes(under.source.stack.design, blocks)[flat.row]
        _, code = np.unique(flat.problem * (int(code.max(initial=0)) + 1) + code, return_inverse=True)
    first = np.full(flat.n_problems, len(flat.y), dtype=np.intp)
    np.minimum.at(first, flat.problem, code)
    return np.asarray(code - first[flat.problem])


def _rearrangements(
    scheme: str, flat: FlatRows, block: NDArray[np.intp] | None, seed: Seed
) -> Callable[[int], Rearrangement]:
    """The i-th rearrangement of the rows of all problems.

    Raises
    ------
    LMMError
        For blocks of which nothing can be exchanged.
    """
    key, n, places = key_of(seed), len(flat.y), flat.n_places
    if scheme == "sign-flip":
        at = flat.place if block is None else block
        count = places if block is None else int(block.max(initial=-1)) + 1
        return lambda i: Rearrangement(None, signs(stream(key, i), count)[at])
    if scheme == "whole" and block is not None:
        return _whole(flat, block, key)
    free = block is None
    block = np.zeros(n, dtype=np.intp) if block is None else block
    code = flat.problem * (int(block.max(initial=0)) + 1) + block
    if np.bincount(code).max(initial=0) < 2:
        raise LMMError("blocks: none has two observations, so that nothing can be exchanged within them")
    there, first_key = np.lexsort((flat.place, code)), code * places

    def make(i: int) -> Rearrangement:
        rng, order = stream(key, i), np.empty(n, dtype=np.intp)
        keys = rng.permutation(places) if free else _ranks(rng.random(places))
        sorted_rows = np.argsort(first_key + keys[flat.place])
        # as permutations of one design are made: the row with the k-th key takes the k-th residual, or the reverse
        if free:
            order[sorted_rows] = there
        else:
            order[there] = sorted_rows
        return Rearrangement(order, None)

    return make


def _ranks(values: Array) -> NDArray[np.intp]:
    """Place of each value among the sorted ones."""
    out = np.empty(len(values), dtype=np.intp)
    out[np.argsort(values)] = np.arange(len(values))
    return out


def _whole(flat: FlatRows, block: NDArray[np.intp], key: Any) -> Callable[[int], Rearrangement]:
    """Blocks of one size of a problem change places."""
    most = int(block.max(initial=0)) + 1
    code = flat.problem * most + block
    used, code = np.unique(code, return_inverse=True)
    sizes = np.bincount(code)
    problem, number = used // most, used % most
    kind = np.unique(np.stack([problem, sizes[np.arange(len(used))]]), axis=1, return_inverse=True)[1].reshape(-1)
    if np.bincount(kind).max(initial=0) < 2:
        raise LMMError("scheme='whole' exchanges blocks of one size, and no two of these have the same")
    sorted_rows = np.lexsort((flat.place, code))
    first = np.cumsum(sizes) - sizes
    inside = np.arange(len(code)) - first[code[sorted_rows]]
    by_number = np.lexsort((number, kind))

    def make(i: int) -> Rearrangement:
        # the k-th block of a kind takes the residuals of that with the number which a permutation gives it
        keys = stream(key, i).permutation(most)[number]
        ranked = np.empty(len(used), dtype=np.intp)
        ranked[np.lexsort((keys, kind))] = by_number
        order = np.empty(len(code), dtype=np.intp)
        order[sorted_rows] = sorted_rows[first[ranked[code[sorted_rows]]] + inside]
        return Rearrangement(order, None)

    return make


class _Null:
    """Fits under the null hypothesis, and statistics of what takes the place of the responses."""

    def __init__(self, source: Source, hypothesis: Any, whitened: bool, jobs: int | None) -> None:
        self.source, self.whitened, self.jobs = source, whitened, jobs
        self.chosen = np.flatnonzero(source.fitted)
        parsed = parse_hypothesis(hypothesis, source.stack.design.exog_names)
        self.L, rhs = parsed.L, parsed.rhs
        self.flat = flat = source.stack.flat(self.chosen)
        root = np.ones(len(flat.y)) if flat.weights is None else np.sqrt(flat.weights)
        self.root, self.offset = root, np.zeros(len(flat.y)) if flat.offset is None else flat.offset
        moved = flat.X @ np.linalg.lstsq(self.L, rhs, rcond=None)[0]
        X = flat.X @ null_space(self.L)
        fits = self._fitted(self._stack(X, tuple(f"null {j}" for j in range(X.shape[1])), flat.y - moved))
        beta, factor = np.nan_to_num(fits.params), fits.relative_factor.copy()
        self.lost = self._lost() | (fits.status < 0)
        e = (flat.y - moved - self.offset - np.einsum("ij,ij->i", X, beta[flat.problem])) * root
        factor[self.lost], e[self.lost[flat.problem]] = 0.0, 0.0
        self.roots = _Roots(flat, root, factor)
        self.e = self.roots.out(e) if whitened else e
        self.nu = (flat.counts - (~np.isnan(source.params[self.chosen])).sum(axis=1) * source.reml).astype(np.float64)
        self.basis, self.along, self.sizes = self._directions()

    def _stack(self, X: Array, names: tuple[str, ...], y: Array) -> Stack:
        flat, design = self.flat, self.source.stack.design
        plain: Design = replace(design, spec=None, groupings=None).other(
            X, flat.Z, {design.random.codes[0].name: flat.group}, flat.weights, flat.offset
        )
        each = numbered(flat.problem, np.arange(flat.n_problems))
        return Stack(replace(plain, exog_names=names), y, each, self.source.stack.kind)

    def _fitted(self, stack: Problems) -> StackFit:
        out = self.source.empty(stack)
        fit_stack(out, self.jobs, False)
        return out

    def _lost(self) -> NDArray[np.bool_]:
        """Of which problems the rows do not determine the hypothesis."""
        out = np.zeros(len(self.chosen), dtype=bool)
        for k in np.flatnonzero(np.isnan(self.source.params[self.chosen]).any(axis=1)).tolist():
            model = self.source.stack.model(int(self.chosen[k])).estimable()
            try:
                check_estimable(model, self.L, [f"row {i}" for i in range(len(self.L))])
            except LMMError:
                out[k] = True
        if out.all():
            raise LMMError("hypothesis: the rows of none of the fits determine it")
        return out

    def _directions(self) -> tuple[Array, Array, Array]:
        """Orthonormal columns of V^-1/2 X (p, n), directions of the hypothesis (m, n), and how many of these."""
        flat, L = self.flat, self.L
        x = self.roots.out((flat.X * self.root[:, None]).T).T
        basis, along = np.zeros((x.shape[1], len(x))), np.zeros((len(L), len(x)))
        ends, sizes = np.cumsum(flat.counts), np.ones(flat.n_problems)
        for k in np.flatnonzero(~self.lost).tolist():
            rows = slice(int(ends[k] - flat.counts[k]), int(ends[k]))
            kept = np.flatnonzero(~np.isnan(self.source.params[self.chosen[k]]))
            Q, R = np.linalg.qr(x[rows][:, kept])
            mapped = np.linalg.solve(R.T, L[:, kept].T)
            basis[kept, rows] = Q.T
            if len(L) == 1:
                along[0, rows] = Q @ mapped[:, 0] / np.linalg.norm(mapped)
                continue
            U, values, _ = np.linalg.svd(mapped / np.linalg.norm(mapped, axis=0), full_matrices=False)
            U = U[:, values > 1e-10 * values[0]]
            sizes[k] = U.shape[1]
            along[: U.shape[1], rows] = (Q @ U).T
        return basis, along, sizes

    def statistic(self, stack: list[Rearrangement], refit: bool) -> Array:
        """Maps (len(stack), n) of t or F, NaN for what was not fitted."""
        e = np.concatenate([one.of(self.e[None]) for one in stack])
        found = self._refitted(e) if refit else self._kept(e if self.whitened else self.roots.out(e))
        out = np.full((len(stack), len(self.source.fitted)), np.nan)
        out[:, self.chosen] = np.where(self.lost, np.nan, found)
        return out

    def _kept(self, white: Array) -> Array:
        """Statistics of responses V^-1/2 y (count, n) with variances kept."""
        flat = self.flat
        left = flat.sums(white**2)
        for column in self.basis:
            left -= flat.sums(white * column) ** 2
        sigma2 = np.maximum(left, 0.0) / self.nu
        lengths = np.stack([flat.sums(white * one) for one in self.along])
        with np.errstate(invalid="ignore", divide="ignore"):
            if len(self.L) == 1:
                return np.asarray(lengths[0] / np.sqrt(sigma2))
            return np.asarray((lengths**2).sum(axis=0) / (self.sizes * sigma2))

    def _refitted(self, e: Array) -> Array:
        """Statistics of responses with variances estimated for each."""
        flat, out = self.flat, np.empty((len(e), self.flat.n_problems))
        names = self.source.stack.design.exog_names
        plain = self._stack(flat.X, names, flat.y)
        asked = Hypothesis(self.L, np.zeros(len(self.L)), tuple(f"row {i}" for i in range(len(self.L))))
        for k, one in enumerate(self.roots.into(e) if self.whitened else e):
            fits = self._fitted(plain.with_response(one / self.root + self.offset))
            out[k] = self.source.statistic(fits, asked)
        return out


class _Roots(SymmetricRoots):
    """Those of every problem, group by group; e (count, n)."""

    def __init__(self, flat: FlatRows, root: Array, factors: Array) -> None:
        self.flat, self.z = flat, (flat.Z * root[:, None]).T
        q = len(self.z)
        owner = flat.problem[np.flatnonzero(np.diff(flat.group, prepend=-1))]
        gram = np.empty((len(owner), q, q))
        for i in range(q):
            for j in range(i + 1):
                gram[:, i, j] = gram[:, j, i] = flat.group_sums(self.z[i] * self.z[j])
        self._into, self._out = inner_roots(factors[owner], gram)

    def _applied(self, e: Array, inner: Array) -> Array:
        group = self.flat.group
        cross = [self.flat.group_sums(e * z) for z in self.z]
        out = e.copy()
        for a, z in enumerate(self.z):
            along = np.zeros_like(cross[a])
            for b, own in enumerate(cross):
                along += own * inner[:, a, b]
            out += along[..., group] * z
        return out
