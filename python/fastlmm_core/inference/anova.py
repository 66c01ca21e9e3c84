"""Analysis of variance of the fixed effects: one F test per term.

The hypotheses are those of lmerTest (Kuznetsova, Brockhoff and Christensen 2017, J. Stat. Softw. 82(13)) and SAS:
type I tests each term after those before it, type II after all terms that do not contain it, type III gives all
combinations of levels equal weight and does not depend on the contrasts in use.  Where columns of X depend on others,
type II tests what a term adds to the mean, so that it does not matter which columns are kept; a factor then contains
the numeric values of its levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError
from ..estimation.column_moments import exog_root
from ..formula.coding import FixedTerm, Overparametrised, contains, fixed_terms, overparametrised
from ..support.arguments import checked
from ..support.display import Cells, Shown
from ..support.types import Array
from ..tables.columns import native_frame
from . import wald as inference
from .options import check_options
from .wald_test import method

if TYPE_CHECKING:
    from ..estimation.fit import Fit
    from .sandwich import Sandwich
    from .wald_test import WaldTest

__all__ = ["TYPES", "AnovaTable", "anova", "estimable_part", "f_statistic", "hypotheses"]


TYPES = {"1": "I", "2": "II", "3": "III"}
"""What else the types of hypotheses are called."""

_TOLERANCE = 1e-8  # of hypotheses made of contrasts and weights of order one
_DEPENDENT = 1e-9  # share of a column that is left by those on which it depends


@checked
@dataclass(frozen=True, repr=False)
class AnovaTable(Shown):
    """F tests of the terms; prints as text and shows as HTML in notebooks.

    Attributes
    ----------
    terms : tuple of str
    sum_sq, mean_sq : (k,) array
        As lmerTest has them: the mean square is F times the residual variance.  NaN with a robust covariance.
    df_num, df_denom : (k,) array
        Zero and NaN for a term that cannot be tested.
    statistic, pvalues : (k,) array
        F and its p-value; NaN for a term that cannot be tested.
    type : {"I", "II", "III"}
    ddf : str
    hypotheses : dict
        Term to the (m, p) contrasts of the coefficients that are tested to be zero.
    notes : tuple of str
        What could not be tested, and why.
    vcov, clusters : str
        "model", or the kind of the robust covariance and its clusters.
    """

    terms: tuple[str, ...]
    sum_sq: Array
    mean_sq: Array
    df_num: NDArray[np.intp]
    df_denom: Array
    statistic: Array
    pvalues: Array
    type: str
    ddf: str
    hypotheses: Mapping[str, Array] = field(repr=False)
    notes: tuple[str, ...] = ()
    vcov: str = "model"
    clusters: str = ""
    _library: str = field(default="dict", repr=False)

    def to_frame(self) -> Any:
        """A table in the library of the caller's data, with the columns term, sum_sq, mean_sq, df_num, df_denom,
        statistic and p_value; a dict of arrays for a model from arrays.
        """
        columns = {
            "term": list(self.terms),
            "sum_sq": self.sum_sq,
            "mean_sq": self.mean_sq,
            "df_num": self.df_num,
            "df_denom": self.df_denom,
            "statistic": self.statistic,
            "p_value": self.pvalues,
        }
        return native_frame(self._library, columns)

    @property
    def title(self) -> str:
        """What the table shows."""
        return f"Type {self.type} analysis of variance, {method(self.ddf, self.vcov, self.clusters)}"

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        from ..support.text_tables import aligned_cells, p_value_cell, significant_cell, statistic_cell

        squares = (self.sum_sq, self.mean_sq) if self.vcov == "model" else ()
        columns = [
            list(self.terms),
            *(aligned_cells([significant_cell(v) for v in values.tolist()]) for values in squares),
            [str(v) for v in self.df_num.tolist()],
            aligned_cells([f"{v:.2f}" for v in self.df_denom.tolist()]),
            aligned_cells([statistic_cell(v) for v in self.statistic.tolist()]),
            [p_value_cell(v) for v in self.pvalues.tolist()],
        ]
        header = ["", *(["Sum Sq", "Mean Sq"] if squares else []), "NumDF", "DenDF", "F", "p"]
        return header, [list(row) for row in zip(*columns, strict=True)]

    def _shown(self) -> Iterator[str | Cells]:
        yield self.title
        yield Cells(*self._cells())
        yield from self.notes


def anova(
    result: Fit,
    type: str = "III",
    ddf: str = "satterthwaite",
    information: str = "auto",
    robust: Sandwich | None = None,
) -> AnovaTable:
    """F tests of the terms of the fixed part.

    Parameters
    ----------
    result : LMMResult
    type : {"III", "II", "I"}
        Which hypotheses: see the module, and `hypotheses`.
    ddf : {"satterthwaite", "kenward-roger", "kenward-roger-linear", "between-within", "residual", "normal"}
        Denominator degrees of freedom.
    information : {"auto", "expected", "observed"}
        For Kenward-Roger.
    robust : Sandwich, optional
        Instead of the covariance of the model.

    Returns
    -------
    AnovaTable
        One row per term other than the intercept; for a model from arrays one row per column.

    Raises
    ------
    LMMError
        For an unknown type, or options that `inference.wald` refuses.
    """
    kind = TYPES.get(str(type), type)
    if kind not in TYPES.values():
        models = "; models are compared by compare(m1, m2)" if hasattr(type, "criterion") else ""
        raise LMMError(f"type={type!r} is unknown: use 'I', 'II' or 'III'{models}")
    check_options(ddf, information, robust)
    terms = fixed_terms(result.model.design)
    tested = [term for term in terms if not term.is_intercept]
    found, notes = hypotheses(result, kind, terms)
    k = len(tested)
    mean_sq, df_denom, statistic, pvalues = (np.full(k, np.nan) for _ in range(4))
    df_num = np.zeros(k, dtype=np.intp)
    covariance = None
    for i, term in enumerate(tested):
        L = found[term.name]
        if not len(L):
            continue
        test = inference.wald(result, L, None, ddf, information, robust)
        statistic[i] = unscaled = f_statistic(test)
        if test.joint_ddf.startswith("kenward-roger") and test.df_num > 1:
            if covariance is None:
                covariance = np.nan_to_num(inference.covariance(result, ddf, information))
            unscaled = _quadratic(test.estimate, L @ covariance @ L.T, test.df_num)
        mean_sq[i], df_num[i], df_denom[i], pvalues[i] = (
            unscaled * result.sigma2 if robust is None else np.nan, test.df_num, test.df_denom, test.pvalue,
        )  # fmt: skip
    return AnovaTable(
        terms=tuple(term.name for term in tested),
        sum_sq=mean_sq * df_num,
        mean_sq=mean_sq,
        df_num=df_num,
        df_denom=df_denom,
        statistic=statistic,
        pvalues=pvalues,
        type=kind,
        ddf=ddf,
        hypotheses=found,
        notes=notes,
        vcov="model" if robust is None else robust.kind,
        clusters="" if robust is None else robust.clusters,
        _library=result.model.library,
    )


def f_statistic(test: WaldTest) -> float:
    """F of a joint test: of a single t the square, of chi-square the mean."""
    if len(test.names) == 1:
        return test.statistic**2
    return test.statistic / test.df_num if test.distribution == "chi2" else test.statistic


def _quadratic(estimate: Array, covariance: Array, rank: int) -> float:
    """The unscaled F statistic, of contrasts that may be dependent."""
    sd = np.sqrt(np.diag(covariance))
    values, vectors = np.linalg.eigh(covariance / np.outer(sd, sd))
    z = vectors[:, -rank:].T @ (estimate / sd)
    return float((z * z / values[-rank:]).sum() / rank)


# ---- hypotheses --------------------------------------------------------------------------------


def hypotheses(
    result: Fit, type: str, terms: Sequence[FixedTerm] | None = None
) -> tuple[dict[str, Array], tuple[str, ...]]:
    """The contrasts that each term's test sets to zero.

    Parameters
    ----------
    result : LMMResult or BatchResult
        Of which only the design matters.
    type : {"I", "II", "III"}
    terms : sequence of FixedTerm, optional

    Returns
    -------
    contrasts : dict
        Term to (m, p) array; no rows where nothing about the term can be estimated.
    notes : tuple of str
        Which hypotheses are not estimable.
    """
    terms = fixed_terms(result.model.design) if terms is None else terms
    tested = [term for term in terms if not term.is_intercept]
    notes: list[str] = [] if tested else ["The fixed part has no terms to test."]
    if type == "I" or len(tested) <= 1:
        found = _sequential(result, tested, [])
    elif type == "II" and len(result.model.problem.kept) < len(result.model.exog_names):
        K = _coordinates(result)
        found = {term.name: _adjusted(K, terms, term, _containing(K, terms, term)) for term in tested}
    elif type == "II":
        found = {}
        for term in tested:
            above = [other for other in tested if contains(other, term)]
            found.update(_sequential(result, [term], above) if above else _marginal(result, [term]))
    else:
        written = overparametrised(result.model.design, terms)
        if written is None:
            notes.append("Contrasts do not span all levels: each term is tested by its own coefficients.")
            if len(result.model.problem.kept) == len(result.model.exog_names):
                found = _marginal(result, tested)
            else:
                K = _coordinates(result)
                found = {term.name: _adjusted(K, terms, term, []) for term in tested}
        else:
            found = _type3(result, terms, written)
            notes += _empty_cells(result, written)
    for term in tested:
        lost = len(term.columns) - len(found[term.name])
        if lost:
            what = "none" if lost == len(term.columns) else f"{len(term.columns) - lost} of {len(term.columns)}"
            notes.append(
                f"{term.name}: {what} of its hypotheses can be estimated, because columns of X depend on others."
            )
    return found, tuple(notes)


def _sequential(result: Fit, terms: Sequence[FixedTerm], above: Sequence[FixedTerm]) -> dict[str, Array]:
    """Each term's coefficients when the columns after it are left out of X.

    `above` is moved behind the terms.  Rows of the unit upper triangular R of X = QR (Cholesky's factor of X'X, as in
    lmerTest, which takes no weights): with the columns after j left out, the estimate of beta_j by least squares
    is that of beta_j + sum_k r_jk / r_jj beta_k.
    """
    model = result.model
    kept = model.problem.kept
    p, exog = len(model.exog_names), exog_root(model)
    last = [j for term in (*terms, *above) for j in term.columns] if above else []
    order = [*(j for j in kept.tolist() if j not in last), *(j for j in last if j in set(kept.tolist()))]
    size = np.linalg.norm(exog[:, order], axis=0)
    triangle = np.linalg.qr(exog[:, order] / size, mode="r")
    unit = triangle / np.diag(triangle)[:, None] / size[:, None] * size
    L = np.zeros((len(order), p))
    L[:, order] = unit
    place = {j: i for i, j in enumerate(order)}
    return {term.name: L[[place[j] for j in term.columns if j in place]] for term in terms}


def _marginal(result: Fit, terms: Sequence[FixedTerm]) -> dict[str, Array]:
    """Each term's own coefficients."""
    identity = np.eye(len(result.model.exog_names))
    return {term.name: identity[list(term.columns)] for term in terms}


def _coordinates(result: Fit) -> Array:
    """K (r, p) with X = Q K and orthonormal Q: the columns of X, those that depend on others too (without weights)."""
    model = result.model
    problem = model.problem
    kept, null = problem.kept, inference.null_space(model)
    K = np.zeros((len(kept), len(model.exog_names)))
    K[:, kept] = np.linalg.inv(problem.x_map[kept])
    if model.streamed:
        exog_root(model)  # refused with weights
    else:
        K[:, kept] = np.linalg.qr(problem.conditioned_x(model.exog), mode="r") @ K[:, kept]
    dropped = np.setdiff1d(np.arange(K.shape[1]), kept)
    K[:, dropped] = -K[:, kept] @ null[kept] / null[dropped, np.arange(len(dropped))]
    return K


def _outside(K: Array, own: Sequence[int], others: Sequence[int]) -> tuple[Array, list[int]]:
    """Orthonormal (r, d) basis of what the columns `own` of K add to the span of `others`, and which d add to it."""
    basis = np.zeros((len(K), 0))
    added: list[int] = []
    # those that vary little about another are compared with what varies: nothing shorter than a rounding error is kept
    for j in (*others, *own):
        rest = K[:, j]
        for _ in range(2):
            rest = rest - basis @ (basis.T @ rest)
        length = float(np.linalg.norm(rest))
        if length > _DEPENDENT * float(np.linalg.norm(K[:, j])):
            basis = np.column_stack([basis, rest / length])
            if j in own:
                added.append(j)
    return basis[:, basis.shape[1] - len(added) :], added


def _containing(K: Array, terms: Sequence[FixedTerm], term: FixedTerm) -> list[FixedTerm]:
    """The terms that contain this one: by their factors, or as a factor contains the numeric values of its levels.

    The latter is so where its columns lie in the span of theirs and of the terms that they contain, and not inversely.
    """

    def span(outer: FixedTerm) -> list[int]:
        return [j for t in terms if t is outer or t.is_intercept or contains(outer, t) for j in t.columns]

    found = []
    for other in terms:
        if other is term or other.is_intercept:
            continue
        inside = not _outside(K, term.columns, span(other))[1]
        if contains(other, term) or (inside and _outside(K, other.columns, span(term))[1]):
            found.append(other)
    return found


def _adjusted(K: Array, terms: Sequence[FixedTerm], term: FixedTerm, above: Sequence[FixedTerm]) -> Array:
    """The hypothesis that a term adds nothing to the mean that all others but those `above` have.

    That is M'X beta = 0 for a basis M of what its columns add to theirs: whichever columns of X are kept.
    """
    others = [j for t in terms if t is not term and t not in above for j in t.columns]
    basis, added = _outside(K, term.columns, others)
    L = basis.T @ K
    # Satterthwaite's degrees of freedom depend on the rows: lmerTest's are unit vectors, or as `_sequential` has them
    own = L[:, added]
    return _clean(np.asarray(L / own.diagonal()[:, None] if above else np.linalg.solve(own, L), dtype=float))


def _type3(result: Fit, terms: Sequence[FixedTerm], written: Overparametrised) -> dict[str, Array]:
    """Type III hypotheses (Goodnight 1976, SAS Technical Report R-101; as lmerTest builds them).

    The coefficients of the treatment contrasts, written as functions of the overparametrised ones, generate all
    estimable functions.  Those of a term involve it and the terms that contain it; orthogonal to those of the terms
    that contain it they are its hypotheses.
    """
    to_treatment = np.linalg.inv(written.M[:, written.treatment])
    functions = _clean(to_treatment @ written.M)  # (p, r): row j is the treatment coefficient j
    own = written.term[written.treatment]
    null = to_treatment @ inference.null_space(result.model)
    if null.shape[1]:
        functions, own = _estimable_functions(functions, own, null)
    found = {}
    for t, term in enumerate(terms):
        if term.is_intercept:
            continue
        above = [s for s, other in enumerate(terms) if contains(other, term)]
        rows, upper = functions[own == t], functions[np.isin(own, above)]
        outside = ~np.isin(written.term, [t, *above])
        # in 0 + a + b the term a stands in for the intercept, and is tested by its own coefficients as in lmerTest
        strict = any(other.numeric == term.numeric and not other.factors for other in terms)
        if strict and (rows[:, outside].any() or upper[:, outside].any()):
            # columns lost to dependence: only functions free of other terms are hypotheses about this one
            both = np.vstack([rows, upper])
            upper = _null(upper[:, outside].T) @ upper
            rows = _null(both[:, outside].T) @ both
        if len(upper):
            rows = rows - rows @ np.linalg.pinv(upper, rcond=_TOLERANCE) @ upper
        rows = _independent(_clean(rows))
        L = _clean(rows @ written.N)
        found[term.name] = L
    return found


def _empty_cells(result: Fit, written: Overparametrised) -> list[str]:
    """Say which combinations of levels have no data, if any."""
    null = inference.null_space(result.model)
    if not null.shape[1]:
        return []
    # a column of R is zero where its coefficients lie in the null space of X
    null = np.linalg.qr(null / np.abs(null).max(axis=0))[0]
    outside = np.linalg.norm(written.M - null @ (null.T @ written.M), axis=0)
    empty = [written.cells[r] for r in np.flatnonzero(outside < _TOLERANCE)]
    empty = list(dict.fromkeys(cell for cell in empty if not any(cell != c and cell.startswith(c) for c in empty)))
    if not empty:
        return []
    shown = "; ".join(empty[:5]) + (f"; and {len(empty) - 5} more" if len(empty) > 5 else "")
    return [
        f"No data: {shown}. Type III hypotheses about the terms involved are averages over the combinations that "
        "have data; interpret them with care."
    ]


def _estimable_functions(functions: Array, own: NDArray[np.intp], null: Array) -> tuple[Array, NDArray[np.intp]]:
    """Generating functions when X N = 0 for the columns of N: columns that depend on earlier ones are left out."""
    basis = null.T / np.abs(null).max(axis=0)[:, None]
    dropped: list[int] = []
    for j in range(basis.shape[1] - 1, -1, -1):  # reduced echelon form, from the last column
        free = np.arange(len(dropped), len(basis))
        pivot = int(free[np.argmax(np.abs(basis[free, j]))]) if len(free) else -1
        if pivot < 0 or abs(basis[pivot, j]) < _TOLERANCE:
            continue
        i = len(dropped)
        basis[[i, pivot]] = basis[[pivot, i]]
        basis[i] /= basis[i, j]
        others = np.arange(len(basis)) != i
        basis[others] -= np.outer(basis[others, j], basis[i])
        dropped.append(j)
    kept = np.setdiff1d(np.arange(len(functions)), dropped)
    # R = T K = T_kept (K_kept + B K_dropped), where T_dropped = T_kept B
    return _clean(functions[kept] - basis[:, kept].T @ functions[dropped]), own[kept]


def estimable_part(result: Fit, L: Array) -> Array:
    """The estimable hypotheses among those that say L beta = 0.

    Parameters
    ----------
    result : LMMResult
    L : (m, p) array

    Returns
    -------
    (k, p) array
        L itself where all its rows are estimable and none is zero, otherwise combinations of its rows.
    """
    if L.any(axis=1).all() and inference.estimable(result.model, L).all():
        return L
    null = inference.null_space(result.model)
    outside = L @ (null / np.abs(null).max(axis=0, initial=1e-300))
    found = _independent(_null(outside.T) @ L)
    return np.where(np.abs(found) < 1e-12 * np.abs(L).max(axis=0), 0.0, found)


def _clean(matrix: Array) -> Array:
    """Rounding errors of zeros taken away."""
    return np.where(np.abs(matrix) < _TOLERANCE * max(np.abs(matrix).max(initial=0.0), 1e-300), 0.0, matrix)


def _null(matrix: Array) -> Array:
    """Rows spanning the vectors that the matrix sends to zero."""
    if not matrix.size:
        return np.eye(matrix.shape[1])
    _, sizes, right = np.linalg.svd(matrix)
    rank = int((sizes > _TOLERANCE * max(float(sizes[0]), 1.0)).sum())
    return np.asarray(right[rank:])


def _independent(rows: Array) -> Array:
    """The rows, or if they depend on each other as many as span them."""
    if not len(rows):
        return rows
    _, sizes, right = np.linalg.svd(rows, full_matrices=False)
    rank = int((sizes > _TOLERANCE * max(float(sizes[0]), 1.0)).sum())
    return rows if rank == len(rows) else np.asarray(right[:rank])
