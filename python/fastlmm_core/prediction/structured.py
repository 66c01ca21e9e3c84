"""New rows where the residuals have a structure: what the rows observed tell of them.

With C the covariance of a new row with those observed in its cluster, V theirs, and K = C V^-1,

    mean = x'beta + K (y - X beta),     variance of the error = v - K C' + d'Phi d,   d = x - K X,

(Henderson 1975, Biometrics 31, 423-447, for the random effects and the residuals together). Variance parameters are
taken as known.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..design.independence import cluster_labels
from ..design.residual import ResidualPart
from ..errors import LMMError
from ..estimation.fit import Fit
from ..estimation.whitening import rows_covariance
from ..formula.matrices import factor_codes
from ..formula.residual import parse_residual
from ..tables.columns import Table
from .new_rows import NewRows, random_design

__all__ = ["conditional_moments"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]


class _Places(NamedTuple):
    """Where new rows stand: subject (-1, -2, ... for new ones), stratum, position or coordinates."""

    subject: Index
    stratum: Index
    where: NDArray[Any]


def conditional_moments(
    result: Fit, data: Any, rows: NewRows, given: bool, new_levels: str, weights: Array | None
) -> tuple[Array, Array, Array]:
    """What observed rows add to the means of new ones (n,), what the errors vary about them (n,), and d (n, p).

    Parameters
    ----------
    result : LMMResult
    data : table
    rows : NewRows
    given : bool
        Whether the observed rows count; otherwise those of the population are asked for.
    new_levels : {"error", "population"}
        Whether subjects that are not in the data are refused.
    weights : (n,) array or None
        Of the new rows.

    Raises
    ------
    LMMError
        For models from arrays or with variance functions, and unknown visits, subjects or groups.
    """
    model, part = result.model, result.model.design.residual
    assert part is not None and model.spec is not None
    table = Table(data, "data")
    places = _places(part, table, new_levels if given else "population")
    n = len(rows.X)
    w = np.ones(n) if weights is None else weights
    q = model.structure.q
    Z = np.zeros((n, q))
    levels: list[Index] = []
    if q:
        names = [f.grouping.name for f in model.factors]
        design = random_design(model, table, names)
        Z = np.asarray(design)
        labels = model.spec.group_labels(table, names)
        levels = [f.grouping.locate(labels[f.grouping.name]) for f in model.factors]
        if new_levels == "error" and given and any((level < 0).any() for level in levels):
            raise LMMError("data has groups that are not among those of the fit; use new_levels='population' for them")
    own = np.array([part.strata[s].matrix(result.phi, v[None])[0, 0] for s, v in _each(places)])
    variance = own / w + np.einsum("ia,ab,ib->i", Z, result.relative_covariance, Z)
    add, d = np.zeros(n), np.array(rows.X)
    if given:
        clusters = _clusters_of(result, places, levels)
        labels_of = cluster_labels(model.design)
        for cluster in np.unique(clusters[clusters >= 0]).tolist():
            new, old = np.flatnonzero(clusters == cluster), np.flatnonzero(labels_of == cluster)
            C = _between(result, part, places, new, old, Z, levels, w)
            K = np.linalg.solve(rows_covariance(result, old) / result.sigma2, C.T).T
            add[new] = K @ result.marginal_rest[old]
            d[new] -= K @ model.exog[old]
            variance[new] -= np.einsum("ij,ij->i", K, C)
    return add, result.sigma2 * np.maximum(variance, 0.0), d


def _each(places: _Places) -> list[tuple[int, NDArray[Any]]]:
    return list(zip(places.stratum.tolist(), places.where, strict=True))


def _clusters_of(result: Fit, places: _Places, levels: list[Index]) -> Index:
    """The cluster of the fit that a new row belongs to by its subject or a group, -1 for none."""
    part = result.model.design.residual
    assert part is not None
    labels = cluster_labels(result.model.design)
    out = np.full(len(places.subject), -1, dtype=np.intp)
    pairs = [(np.asarray(part.subject.codes), places.subject)]
    pairs += [(f.grouping.index, level) for f, level in zip(result.model.factors, levels, strict=False)]
    for codes, mine in pairs:
        of_level = np.empty(int(codes.max()) + 1, dtype=np.intp)
        of_level[codes] = labels
        known = mine >= 0
        found = of_level[mine[known]]
        if (other := (out[known] >= 0) & (out[known] != found)).any():
            row = int(np.flatnonzero(known)[np.flatnonzero(other)[0]])
            raise LMMError(f"data: row {row} has a subject and a group that are of different clusters in the fit")
        out[known] = found
    return out


def _between(
    result: Fit, part: ResidualPart, places: _Places, new: Index, old: Index, Z: Array, levels: list[Index], w: Array
) -> Array:
    """Covariance of new rows with observed ones, relative to sigma^2."""
    model = result.model
    out = np.zeros((len(new), len(old)))
    for f, level in zip(model.factors, levels, strict=False):
        G = result.relative_covariance[f.columns, f.columns]
        product = Z[new][:, f.columns] @ G @ model.exog_re[old][:, f.columns].T
        out += product * np.equal.outer(level[new], f.grouping.index[old])
    codes = np.asarray(part.subject.codes)[old]
    root = np.ones(len(old)) if model.weights is None else np.sqrt(model.weights[old])
    for i, row in enumerate(new.tolist()):
        mine = np.flatnonzero(codes == places.subject[row])
        if len(mine):
            where = np.concatenate([places.where[row][None], part.where[old[mine]]])
            cross = part.strata[places.stratum[row]].matrix(result.phi, where)[0, 1:]
            out[i, mine] += cross / (root[mine] * np.sqrt(w[row]))
    return out


def _places(part: ResidualPart, table: Table, new_levels: str) -> _Places:
    """Subjects, strata and positions of new rows."""
    if part.written is None:
        raise LMMError("predict: rows of structured residuals are placed by a formula's columns; this model has none")
    parsed = parse_residual(part.written)
    columns = [table.column(name, "`residual`").settle() for name in parsed.columns]
    k = len(parsed.time)
    codes, labels = factor_codes(parsed.subject, columns[k : k + len(parsed.subject)], None)
    known = {label: i for i, label in enumerate(np.asarray(part.subject.slot_labels).tolist())}
    places = np.array([known.get(label, -1 - i) for i, label in enumerate(labels.tolist())], dtype=np.intp)
    if new_levels == "error" and (places < 0).any():
        label = labels[int(np.flatnonzero(places < 0)[0])]
        raise LMMError(
            f"data: {part.subject.name} {label!r} is not among the subjects of the fit; use new_levels='population' "
            "for the mean of a new subject"
        )
    stratum = np.zeros(len(codes), dtype=np.intp)
    if parsed.by is not None:
        found, names = columns[-1].codes(None)
        stratum = _matched([own.label for own in part.strata], names, found, parsed.by)
    if not part.at_visits:
        where = np.column_stack([np.asarray(column.number, dtype=float) for column in columns[:k]])
        return _Places(places[codes], stratum, where)
    if k > 1:
        raise LMMError(f"predict: new rows of {part.term} are not placed; use effects='population'")
    found, names = columns[0].codes(None)
    return _Places(places[codes], stratum, _matched(list(part.labels), names, found, parsed.time[0]))


def _matched(known: list[str], names: NDArray[Any], codes: NDArray[Any], column: str) -> Index:
    """Position among the known labels of each row's own."""
    place = {label: i for i, label in enumerate(known)}
    labels = [str(label) for label in names.tolist()]
    for label in labels:
        if label not in place:
            raise LMMError(f"data: {column} {label} is not among those of the fit ({', '.join(known[:8])})")
    out: Index = np.array([place[label] for label in labels], dtype=np.intp)[codes]
    return out
