"""Solutions and traces of crossed factors too many for dense matrices: conjugate gradients, and random probes.

With M = Lambda'Z'WZ Lambda + I, |V| = |M| up to the weights.  The levels of the factor that has most are eliminated;
what is left, scaled by the blocks of its own levels, is A = I - B, B = T'T less the products between the other factors:

    log|M| = sum of the blocks' log|D| + log|A|

Solutions are by conjugate gradients; log|A| = E z'log(A) z over signs z comes from the Lanczos coefficients that the
conjugate gradients for z have made (Ubaru, Chen and Saad 2017, SIAM J. Matrix Anal. Appl. 38, 1075-1099), and the
traces of the derivatives from the solutions A^-1 z (Hutchinson 1989).  z'Bz and B z, of which the means are known
exactly, are control variates.  Probes are the same at each point, so that estimates are functions of theta.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ...errors import LMMError
from ...kernels.layouts import Layout
from ...support.threads import map_in_threads, threads_in_use
from ...support.types import Array, Index

__all__ = ["TOGETHER", "Products", "System", "Traces", "blocks_times", "products_of"]


TOGETHER, AT_ONCE = 8, 2**15
"""Columns that are solved for side by side, at the least, and numbers in those of small systems, of which a product
takes no longer than its call: as many whatever the number of threads, so that threads do not change any bit."""

EXACT, PROBED = 1e-11, 1e-10
"""Share of a right-hand side that conjugate gradients leave: of [X y] and what is made of it, and of probes."""

MOST_STEPS = 2000
"""Steps of conjugate gradients at the most."""


# ---- products -----------------------------------------------------------------------------------------------------


class Products(NamedTuple):
    """Z'WZ of all levels.

    Attributes
    ----------
    slots : list of (m, q) arrays
        Of each factor, the one that is eliminated first.
    columns : list of int
        Its first column in Lambda.
    own : list of (m, q, q) arrays
        Products of each level with itself.
    across : sparse (n_first, n_rest)
        Those of the levels eliminated with the other ones.
    between : sparse (n_rest, n_rest) or None
        Those among the other factors, symmetric, without the products of a level with itself.
    """

    slots: list[Index]
    columns: list[int]
    own: list[Array]
    across: Any
    between: Any


def products_of(layout: Layout, n_slots: int) -> Products:
    """The products of a layout as sparse matrices."""
    slots, columns = layout.factor_slots()
    first = slots[0].size
    tail_at = sum(stage.m * stage.q for stage in layout.stages)
    rows: list[Any] = []
    others: list[Any] = []
    values: list[Array] = []
    stages: list[Any] = list(layout.stages)
    items: list[Any] = [*stages, *layout.tails]
    comp_slot = np.asarray(layout.comp_slot)
    for f, (item, mine) in enumerate(zip(items, slots, strict=True)):
        if f < len(stages):
            ancestor, at = np.arange(item.m), 0
            for g in range(f + 1, len(stages)):
                ancestor = stages[g - 1].parent[ancestor]
                theirs = slots[g][ancestor]
                block = item.chain[:, :, at : at + theirs.shape[1]]
                rows.append(np.broadcast_to(mine[:, :, None], block.shape).ravel())
                others.append(np.broadcast_to(theirs[:, None, :], block.shape).ravel())
                values.append(block.ravel())
                at += theirs.shape[1]
        if item.start is None or item.slots is None or not len(item.slots):
            continue
        width = np.diff(item.start)
        level = np.repeat(np.arange(item.m), width)
        column = item.slots.astype(np.intp) + tail_at + comp_slot[item.comp[level]]
        # a level has its products with all neighbours for its first effect, then for the second
        place = np.arange(len(column)) - item.start[level]
        for i in range(item.q):
            rows.append(mine[level, i])
            others.append(column)
            values.append(item.panel[item.q * item.start[level] + i * width[level] + place])
    row, other, value = (np.concatenate(parts) if parts else np.zeros(0) for parts in (rows, others, values))
    low = row.astype(np.int64) < first
    rest = n_slots - first
    build: Any = sparse.csr_array
    across = build((value[low], (row[low], other[low] - first)), shape=(first, rest))
    between = None
    if not low.all():
        inner = build((value[~low], (row[~low] - first, other[~low] - first)), shape=(rest, rest))
        between = (inner + inner.T).tocsr()
    return Products(slots, columns, [item.own for item in items], across, between)


def blocks_times(blocks: Array, values: Array, slots: Index) -> Array:
    """Blocks (m, q, q) times the values of the levels (n_slots, c), by levels (m, q, c)."""
    if blocks.shape[1] == 1:
        return np.asarray(blocks[:, :, 0][:, :, None] * values[slots])
    return np.asarray(blocks @ values[slots])


class Traces(NamedTuple):
    """What the probes tell at one point.

    Attributes
    ----------
    log_det : float
        log|M|.
    blocks : list of (q, q) arrays
        Sum over the levels of the blocks of Lambda'N Lambda of each factor.
    log_det_error : float
        Monte Carlo standard error of log|M|.
    log_det_deviations : (probes,) array
        What each probe makes of it, less the mean.
    deviations : list of (probes, q, q) arrays
        What each probe makes of `blocks`, less their mean.
    """

    log_det: float
    blocks: list[Array]
    log_det_error: float
    log_det_deviations: Array
    deviations: list[Array]


class System:
    """M at one Lambda: solutions and traces.

    Parameters
    ----------
    products : Products
    factor : (q, q) array
        Lambda, of which the blocks of the factors have inverses.
    """

    def __init__(self, products: Products, factor: Array) -> None:
        self.products = products
        self.inner = [
            factor[c : c + mine.shape[1], c : c + mine.shape[1]]
            for mine, c in zip(products.slots, products.columns, strict=True)
        ]
        half: list[Array] = []
        log_det = 0.0
        for own, L in zip(products.own, self.inner, strict=True):
            block = np.linalg.cholesky(L.T @ own @ L + np.eye(len(L)))
            log_det += 2.0 * float(np.log(np.diagonal(block, axis1=1, axis2=2)).sum())
            half.append(np.asarray(np.linalg.inv(block) if len(L) > 1 else 1.0 / block, dtype=np.float64))
        self.first = products.slots[0].size
        self.half = half
        self.log_det = log_det
        left = self._diagonal([half[0] @ self.inner[0].T], products.slots[:1], 0)
        turned = [L @ np.swapaxes(own, 1, 2) for own, L in zip(half[1:], self.inner[1:], strict=True)]
        right = self._diagonal(turned, products.slots[1:], self.first)
        self.T = (left @ products.across @ right).tocsr()
        self.turned = self.T.T
        self.together = TOGETHER * max(1, min(8, AT_ONCE // (TOGETHER * self.T.shape[1])))
        self.others = None if products.between is None else (right.T @ products.between @ right).tocsr()

    def _diagonal(self, blocks: list[Array], slots: list[Index], at: int) -> Any:
        """A matrix of blocks by levels."""
        rows = [np.broadcast_to(mine[:, :, None], own.shape).ravel() for own, mine in zip(blocks, slots, strict=True)]
        columns = [
            np.broadcast_to(mine[:, None, :], own.shape).ravel() for own, mine in zip(blocks, slots, strict=True)
        ]
        values = [np.ascontiguousarray(own).ravel() for own in blocks]
        count = sum(mine.size for mine in slots)
        place = (np.concatenate(rows) - at, np.concatenate(columns) - at)
        return sparse.csr_array((np.concatenate(values), place), shape=(count, count))

    def apply(self, V: Array) -> Array:
        """A V."""
        out = V - self.turned @ (self.T @ V)
        return np.asarray(out if self.others is None else out + self.others @ V)

    # ---- M^-1 --------------------------------------------------------------------------------------------

    def solve(self, h: Array) -> Array:
        """M^-1 h for (n_slots, c) columns."""
        count = h.shape[1]
        parts = [h[:, at : at + self.together] for at in range(0, count, self.together)]
        found = map_in_threads(self._solve, ((part,) for part in parts), min(threads_in_use(), len(parts)))
        return np.concatenate(found, axis=1) if found else np.zeros_like(h)

    def _solve(self, h: Array) -> Array:
        width = h.shape[1]
        if width % TOGETHER:
            h = np.concatenate([h, np.zeros((len(h), -width % TOGETHER))], axis=1)
        slots, half = self.products.slots, self.half
        whole = np.empty_like(h)
        for own, mine in zip(half, slots, strict=True):
            whole[mine] = blocks_times(own, h, mine)
        whole[self.first :] -= self.turned @ whole[: self.first]
        w = conjugate(self.apply, whole[self.first :], EXACT).x
        whole[: self.first] -= self.T @ w
        whole[self.first :] = w
        out = np.empty_like(h)
        for own, mine in zip(half, slots, strict=True):
            out[mine] = blocks_times(np.swapaxes(own, 1, 2), whole, mine)
        return out[:, :width]

    # ---- probes ------------------------------------------------------------------------------------------

    def traces(self, probes: int, seed: int) -> Traces:
        """What `probes` probes tell (a multiple of TOGETHER)."""
        step = self.together // TOGETHER
        tasks = [(seed, range(probes // TOGETHER)[at : at + step]) for at in range(0, probes // TOGETHER, step)]
        found = map_in_threads(self._probe, tasks, min(threads_in_use(), len(tasks)))
        logs, bilinear = np.concatenate([one[0] for one in found]), np.concatenate([one[1] for one in found])
        mean_b = [self._own_of_b(f) for f in range(len(self.half))]
        trace_b = float(sum(np.trace(own, axis1=1, axis2=2).sum() for own in mean_b[1:]))
        log_a, log_error, log_rest = _controlled(logs, -bilinear, -trace_b)
        blocks, deviations = [], []
        for f, (own, L_b) in enumerate(zip(self.half, mean_b, strict=True)):
            turned = np.swapaxes(own, 1, 2)
            q = own.shape[1]
            known = np.einsum("aij,ajk,alk->il", turned, L_b, turned) if f else self._first_known(turned, L_b)
            values = np.concatenate([one[2][f] for one in found])
            control = np.concatenate([one[3][f] for one in found])
            mean, rest = np.empty((q, q)), np.empty((len(values), q, q))
            for i in range(q):
                for j in range(i + 1):
                    mean[i, j], _, rest[:, i, j] = _controlled(values[:, i, j], control[:, i, j], known[i, j])
                    mean[j, i], rest[:, j, i] = mean[i, j], rest[:, i, j]
            # I - D^-1 = D^-1 (D - I), without a difference
            L, products = self.inner[f], self.products.own[f]
            inverse = turned @ own
            blocks.append(np.einsum("aij,ajk->ik", inverse, L.T @ products @ L) - mean)
            deviations.append(-rest)
        return Traces(self.log_det + log_a, blocks, log_error, log_rest, deviations)

    def _first_known(self, turned: Array, own: Array) -> Array:
        return np.asarray(np.einsum("aij,ajk,alk->il", turned, own, turned))

    def _own_of_b(self, f: int) -> Array:
        """Blocks by levels of T T' for the factor that is eliminated, of B for the others (m, q, q)."""
        slots = self.products.slots[f]
        m, q = slots.shape
        out = np.zeros((m, q, q))
        if q == 1:
            squares = self.T.data**2
            if f == 0:
                row = np.repeat(np.arange(self.T.shape[0]), np.diff(self.T.indptr))
                out[:, 0, 0] = np.bincount(row, squares, self.T.shape[0])[slots[:, 0]]
            else:
                out[:, 0, 0] = np.bincount(self.T.indices, squares, self.T.shape[1])[slots[:, 0] - self.first]
            return out
        whole = self.T if f == 0 else self.turned.tocsr()
        at = slots if f == 0 else slots - self.first
        parts = [whole[at[:, i]] for i in range(q)]
        for i in range(q):
            for j in range(i + 1):
                out[:, i, j] = out[:, j, i] = np.asarray(parts[i].multiply(parts[j]).sum(axis=1)).ravel()
        return out

    def _probe(self, seed: int, numbers: range) -> tuple[Array, Array, list[Array], list[Array]]:
        """Of some probes: z'log(A) z, z'B z, what they make of the blocks, and their controls."""
        size = self.T.shape[1]
        drawn = [np.random.default_rng([seed, number]).integers(0, 2, (size, TOGETHER)) for number in numbers]
        z = 2.0 * np.concatenate(drawn, axis=1).astype(np.float64) - 1.0
        found = conjugate(self.apply, z, PROBED)
        b = z - found.first
        logs = np.array([_quadrature(found, j, size) for j in range(z.shape[1])])
        rest, Tz = found.x - z, self.T @ z
        values, controls = [], []
        for f, (own, mine) in enumerate(zip(self.half, self.products.slots, strict=True)):
            turned = np.swapaxes(own, 1, 2)
            if f == 0:
                left = blocks_times(turned, Tz, mine)
                pair = _pairs(left, left), _pairs(blocks_times(turned, Tz + self.T @ rest, mine), left)
            else:
                pair = self._pairs_of(turned, mine - self.first, z, b, rest)
            controls.append(pair[0])
            values.append(pair[1])
        return logs, np.einsum("ij,ij->j", z, b), values, controls

    def _pairs_of(self, turned: Array, mine: Index, z: Array, b: Array, rest: Array) -> tuple[Array, Array]:
        """B and A^-1 - I in the blocks of a factor, by probes z, B z and A^-1 z - z (probes, q, q) each.

        Where there are other effects, their signs would add noise of the first order in Lambda to what is of the second
        order: each effect has probes of its own then.
        """
        m, q = mine.shape
        if self.T.shape[1] == m:
            right = blocks_times(turned, z, mine)
            return _pairs(blocks_times(turned, b, mine), right), _pairs(blocks_times(turned, rest, mine), right)
        known, found = np.zeros((2, z.shape[1], q, q))
        for i in range(q):
            own = np.zeros_like(z)
            own[mine[:, i]] = z[mine[:, i]]
            solved = conjugate(self.apply, own, PROBED)
            right = blocks_times(turned, own, mine)
            known += _pairs(blocks_times(turned, own - solved.first, mine), right)
            found += _pairs(blocks_times(turned, solved.x - own, mine), right)
        return known, found


def _pairs(left: Array, right: Array) -> Array:
    """Sums over levels of products of (m, q, c) arrays, symmetric (c, q, q)."""
    found = np.einsum("aic,ajc->cij", left, right)
    return np.asarray(0.5 * (found + np.swapaxes(found, 1, 2)))


def _controlled(values: Array, control: Array, known: float) -> tuple[float, float, Array]:
    """Mean of values by a control variate of known mean; its standard error; what each value leaves."""
    own, other = values - values.mean(), control - control.mean()
    size = float(other @ other)
    slope = float(own @ other) / size if size > 0.0 else 0.0
    rest = own - slope * other
    n = len(values)
    error = float(np.sqrt(rest @ rest / max(n - 2, 1) / n))
    return float(values.mean() - slope * (control.mean() - known)), error, rest


# ---- conjugate gradients ---------------------------------------------------------------------------------------------


class Solved(NamedTuple):
    """Solutions of A x = b, and the coefficients that found them.

    Attributes
    ----------
    x, first : (n, c) arrays
        Solutions, and A b.
    alpha, beta : (steps, c) arrays
    steps : (c,) array
    """

    x: Array
    first: Array
    alpha: Array
    beta: Array
    steps: NDArray[np.intp]


def conjugate(apply: Any, b: Array, tolerance: float) -> Solved:
    """Conjugate gradients for several right-hand sides, each with coefficients of its own.

    Raises
    ------
    LMMError
        Where they do not come to an end.
    """
    x, r = np.zeros_like(b), b.copy()
    p = r
    square = np.einsum("ij,ij->j", r, r)
    goal = tolerance**2 * square
    live = square > goal
    steps = np.zeros(b.shape[1], dtype=np.intp)
    alphas: list[Array] = []
    betas: list[Array] = []
    first = b
    while live.any():
        if len(alphas) == MOST_STEPS:
            raise LMMError(
                f"method='iterative': conjugate gradients have not converged in {MOST_STEPS} steps, as the levels are "
                "connected badly or their variances are very large; use method='newton'"
            )
        q = apply(p)
        if not alphas:
            first = q
        bend = np.einsum("ij,ij->j", p, q)
        alpha = np.where(live, square / np.where(live, bend, 1.0), 0.0)
        x += alpha * p
        r = r - alpha * q
        new = np.einsum("ij,ij->j", r, r)
        beta = np.where(live, new / np.where(square > 0.0, square, 1.0), 0.0)
        steps += live
        alphas.append(alpha)
        betas.append(beta)
        p = r + beta * p
        square = np.where(live, new, square)
        live = live & (square > goal)
    shape = (0, b.shape[1])
    return Solved(x, first, np.array(alphas).reshape(-1, shape[1]), np.array(betas).reshape(-1, shape[1]), steps)


def _quadrature(found: Solved, j: int, size: int) -> float:
    """z'log(A) z by the Lanczos matrix of the conjugate gradients for z."""
    count = int(found.steps[j])
    if not count:
        return 0.0
    alpha, beta = found.alpha[:count, j], found.beta[:count, j]
    diagonal = 1.0 / alpha
    diagonal[1:] += beta[:-1] / alpha[:-1]
    below = np.sqrt(beta[:-1]) / alpha[:-1]
    values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(below, 1) + np.diag(below, -1))
    return float(size * (vectors[0] ** 2 @ np.log(values)))
