"""Estimates for many problems, each with a design of its own, and their tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...covariance.directions import inverse_hessian
from ...covariance.elements import element_names, sd_and_cor
from ...errors import LMMError
from ...estimation.information import combined_df
from ...estimation.many.stack import StackFit
from ...estimation.moments import delta_df
from ...support.arguments import checked
from ...support.checks import check_level
from ...support.display import LINES, Cells, Shown, first_lines
from ...support.distributions import two_sided_p
from ...support.text_tables import estimate_cells
from ...support.types import Array
from ...tables.rows import named_rows
from ..hypotheses import Hypothesis, parse_hypothesis
from ..wald import coefficient_table, independent_rows, wald
from .tests import BatchTest, check_ddf, joint_pvalues, t_columns

if TYPE_CHECKING:
    from ...estimation.fit import Fit
    from ..options import Ddf, Information

__all__ = ["EachResult"]


@checked
class EachResult(Shown, StackFit):
    """Estimates for many problems, each with a design of its own; every array has a leading axis over problems.

    ``result[i]`` is the full result of one problem, by position or label.

    Attributes
    ----------
    params, bse : (n_problems, p) arrays
        Fixed effects and standard errors; NaN for columns that are dropped in a problem because they depend on those
        before them there, and for problems that could not be fitted.
    sigma2, criterion, gradient_norm : (n_problems,) arrays
    nobs, n_groups, rank, n_evaluations : (n_problems,) int arrays
        Rows, groups, columns of X kept, and evaluations of the criterion.
    reasons : dict
        Why problems could not be fitted, by position.
    """

    @property
    def labels(self) -> NDArray[Any]:
        """Labels of the problems (n_problems,), sorted."""
        return self.stack.labels

    @property
    def exog_names(self) -> tuple[str, ...]:
        """Names of the fixed effects."""
        return self.stack.design.exog_names

    @property
    def converged(self) -> NDArray[np.bool_]:
        """Whether each optimum is certified (n_problems,)."""
        return np.asarray(self.status > 0)

    @property
    def singular(self) -> NDArray[np.bool_]:
        """Whether each estimate lies on the boundary (n_problems,)."""
        return np.asarray(self.status == 2)

    @property
    def invalid(self) -> NDArray[np.intp]:
        """Problems that could not be fitted; `reasons` says why."""
        return np.flatnonzero(self.status < 0)

    @property
    def llf(self) -> Array:
        """Maximised log-likelihoods (n_problems,), restricted by REML."""
        return -0.5 * self.criterion

    @property
    def aic(self) -> Array:
        """Akaike's information criterion (n_problems,)."""
        return self.criterion + 2.0 * self._n_parameters

    @property
    def bic(self) -> Array:
        """Schwarz's information criterion with log(nobs) (n_problems,)."""
        return np.asarray(self.criterion + np.log(np.maximum(self.nobs, 1)) * self._n_parameters, dtype=np.float64)

    @property
    def _n_parameters(self) -> Array:
        return np.asarray(self.rank + self.theta_o.shape[1] + 1, dtype=np.float64)

    @property
    def theta(self) -> Array:
        """Relative covariance parameters (n_problems, k), in lme4's order."""
        rows, columns = self.stack.design.structure.positions
        return np.asarray(self.relative_factor[:, rows, columns])

    @property
    def covariance(self) -> Array:
        """Covariance matrices of the random effects of all terms (n_problems, q, q)."""
        return np.asarray(self.sigma2[:, None, None] * (self.relative_factor @ self.relative_factor.transpose(0, 2, 1)))

    @property
    def G(self) -> dict[str, Array]:
        """Covariance matrices of the random effects by term (n_problems, q, q)."""
        design, whole = self.stack.design, self.covariance
        return {
            name: whole[:, block.start : block.stop, block.start : block.stop]
            for name, block in zip(design.term_names, design.structure.blocks, strict=True)
        }

    @property
    def tvalues(self) -> Array:
        """Estimates divided by standard errors (n_problems, p)."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.params / self.bse)

    @property
    def df(self) -> Array:
        """Satterthwaite's degrees of freedom of the t tests that each fixed effect is zero (n_problems, p)."""
        return self.satterthwaite.copy()

    @property
    def pvalues(self) -> Array:
        """Two-sided p-values of the t tests that each fixed effect is zero (n_problems, p), with Satterthwaite's df."""
        return two_sided_p(self.tvalues, self.satterthwaite)

    def conf_int(self, level: float = 0.95, *, ddf: Ddf = "satterthwaite", information: Information = "auto") -> Array:
        """Confidence intervals of the fixed effects (n_problems, p, 2).

        Parameters
        ----------
        level : float
        ddf, information
            As for `test`.

        Raises
        ------
        LMMError
            As `tidy`.
        """
        found = self.columns(level, ddf, information)
        return np.stack([found["conf_low"], found["conf_high"]], axis=-1)

    def cov_params(self) -> Array:
        """Covariance matrices of the fixed effects (n_problems, p, p); NaN for dropped columns."""
        p = self.params.shape[1]
        out = self.sigma2[:, None, None] * self.contrasts(np.eye(p))[0]
        for i in self._apart():
            out[i] = self.one(i).cov
        return out

    def _apart(self) -> list[int]:
        """Problems that are tested by themselves: fitted so, or with columns dropped."""
        apart = (self.by_lanes == 0) | (self.rank < self.params.shape[1])
        return np.flatnonzero(apart & (self.status >= 0)).tolist()

    def _coefficients(self, ddf: str, information: str) -> tuple[Array, Array]:
        """Standard errors and degrees of freedom (n, p)."""
        _check(self, ddf, information)
        if ddf == "satterthwaite":
            return self.bse, self.satterthwaite
        if ddf == "kenward-roger":
            error, freedom = np.full_like(self.bse, np.nan), np.full_like(self.bse, np.nan)
            for i in np.flatnonzero(self.status >= 0).tolist():
                table = coefficient_table(self.one(i), ddf, information)
                error[i], freedom[i] = table["std_error"], table["df"]
            return error, freedom
        known = np.full(len(self), np.inf) if ddf == "normal" else self.nobs - self.rank
        return self.bse, np.where(np.isnan(self.params), np.nan, known[:, None])

    def test(
        self, hypothesis: Any, rhs: Any = None, *, ddf: Ddf = "satterthwaite", information: Information = "auto"
    ) -> BatchTest:
        """Test linear hypotheses on the fixed effects for every problem, each on its own design.

        Parameters
        ----------
        hypothesis, rhs
            See `LMMResult.test`.
        ddf : {"satterthwaite", "kenward-roger", "residual", "normal"}
            For Kenward-Roger each problem is fitted once more by itself, which takes much longer than the fits did.
        information : {"auto", "expected", "observed"}
            For Kenward-Roger, see `LMMResult.test`.

        Returns
        -------
        BatchTest
            NaN for problems whose rows do not determine the hypothesis.

        Raises
        ------
        LMMError
            For hypotheses that cannot be tested, and Kenward-Roger after fits by ML.
        """
        _check(self, ddf, information)
        parsed = parse_hypothesis(hypothesis, self.exog_names, rhs)
        return _test(self, parsed, ddf, information)

    def tidy(self, level: float = 0.95, *, ddf: Ddf = "satterthwaite", information: Information = "auto") -> Any:
        """One row per problem and coefficient.

        Parameters
        ----------
        level : float
            Of the confidence limits.
        ddf, information
            As for `test`.

        Returns
        -------
        frame in the library of the data, or dict of arrays
            problem (its label), term, estimate, std_error, df, statistic, p_value, conf_low, conf_high.

        Raises
        ------
        LMMError
            For a level outside (0, 1), unknown options, or Kenward-Roger after fits by ML.
        """
        found, p = self.columns(level, ddf, information), len(self.exog_names)
        named: dict[str, Any] = {"problem": np.repeat(self.labels, p), "term": list(self.exog_names) * len(self)}
        return self.stack.design.table(named | {name: values.ravel() for name, values in found.items()})

    def columns(self, level: float, ddf: str, information: str) -> dict[str, Array]:
        """What `tidy` tells of the coefficients, in arrays (n_problems, p).

        Parameters
        ----------
        level, ddf, information
            As for `tidy`.
        """
        check_level(level)
        return t_columns(self.params, *self._coefficients(ddf, information), level)

    def to_frame(self) -> Any:
        """One row per problem: sizes, estimates, standard errors, variance parameters, criterion and flags.

        Returns
        -------
        frame in the library of the data, or dict of arrays
            With the labels of the problems as index, in other libraries than pandas as a column ``problem``.
        """
        design = self.stack.design
        columns: dict[str, Any] = {"nobs": self.nobs, "n_groups": self.n_groups}
        columns |= {name: self.params[:, j] for j, name in enumerate(self.exog_names)}
        columns |= {f"std_error_{name}": self.bse[:, j] for j, name in enumerate(self.exog_names)}
        elements = design.random.elements
        values = np.column_stack([sd_and_cor(elements, self.covariance), np.sqrt(self.sigma2)])
        columns |= {name: values[:, k] for k, name in enumerate(element_names(elements))}
        columns |= {"criterion": self.criterion, "converged": self.converged, "singular": self.singular}
        return named_rows(design.library, "problem", self.labels, columns)

    def __getitem__(self, i: Any) -> Fit:
        """The full result of one problem, by position (an integer) or by label (anything else).

        Raises
        ------
        IndexError
            For a position outside.
        LMMError
            For an unknown label, or a problem that could not be fitted: why.
        """
        if isinstance(i, bool) or not isinstance(i, (int, np.integer)):
            return self.of(i)
        if not -len(self) <= i < len(self):
            raise IndexError(f"problem {i} of {len(self)}")
        return self.one(int(i) % len(self))

    def of(self, label: Any) -> Fit:
        """The full result of the problem with a label.

        Parameters
        ----------
        label
            As in the column, or the array, that told the problems apart.

        Raises
        ------
        LMMError
            For an unknown label, or a problem that could not be fitted: why.
        """
        found = np.flatnonzero(self.labels == label)
        if not len(found):
            raise LMMError(f"no problem has the label {label!r}; labels are {self.labels[:3].tolist()} and so on")
        return self.one(int(found[0]))

    def _shown(self) -> Iterator[str | Cells]:
        yield repr(self)[1:-1]
        some = range(min(len(self), LINES))
        cells = [
            estimate_cells(self.params[some, j].tolist(), self.bse[some, j].tolist(), 3)
            for j in range(self.params.shape[1])
        ]
        rows = [
            [
                str(self.labels[i]),
                *(column[i] for column in cells),
                f"{np.sqrt(self.sigma2[i]):.4g}",
                "yes" if self.converged[i] else "no",
            ]
            for i in some
        ]
        yield Cells(["", *self.exog_names, "sigma", "certified"], first_lines(rows, count=len(self)))

    def __repr__(self) -> str:
        kind = "REML" if self.reml else "ML"
        return (
            f"<EachResult: {len(self)} {kind} fits, {int(self.converged.sum())} certified, "
            f"{int(self.singular.sum())} singular, {len(self.invalid)} not fitted>"
        )


def _check(result: EachResult, ddf: str, information: str) -> None:
    check_ddf(ddf, information)
    if ddf == "kenward-roger" and not result.reml:
        raise LMMError("ddf='kenward-roger' needs REML fits: fit with reml=True, or use ddf='satterthwaite'")


def _test(result: EachResult, parsed: Hypothesis, ddf: str, information: str) -> BatchTest:
    """`EachResult.test` for a parsed hypothesis."""
    L, m, count = parsed.L, len(parsed.L), len(result)
    basis, combine = independent_rows(L, parsed.rhs, parsed.names)
    rank = len(basis)
    estimate = np.nan_to_num(result.params) @ L.T
    error, statistic, freedom = np.full((count, m), np.nan), np.full(count, np.nan), np.full(count, np.nan)
    apart = np.flatnonzero(result.status >= 0).tolist() if ddf == "kenward-roger" else result._apart()
    if ddf != "kenward-roger":
        covariance, slope, shift, hess = result.contrasts(L)
        error = np.sqrt(result.sigma2[:, None] * np.einsum("nii->ni", covariance))
        gap = estimate - parsed.rhs
        some = np.setdiff1d(np.flatnonzero(result.by_lanes), apart)
        if ddf == "satterthwaite":
            inverse = inverse_hessian(result.stack.design.structure, result.theta_o[some], hess[some])
            nu = np.asarray(result.nobs - (result.rank if result.reml else 0), dtype=np.float64)[some]
            squares, freedom[some] = _satterthwaite(
                covariance[some], slope[some], shift[some], inverse, nu, gap[some], rank
            )
            statistic[some] = squares / (rank * result.sigma2[some])
        else:
            freedom[some] = np.inf if ddf == "normal" else (result.nobs - result.rank)[some]
            inner, z = np.einsum("ri,nij,sj->nrs", combine, covariance[some], combine), gap[some] @ combine.T
            squares = (z * np.linalg.solve(inner, z[..., None])[..., 0]).sum(axis=1) / result.sigma2[some]
            statistic[some] = squares if ddf == "normal" else squares / rank
        if m == 1:
            statistic[some] = gap[some, 0] / error[some, 0]
    for i in apart:
        try:
            one = wald(result.one(i), L, parsed.rhs, ddf, information)
        except LMMError:  # not estimable there
            estimate[i] = error[i] = np.nan
            continue
        estimate[i], error[i], statistic[i], freedom[i] = one.estimate, one.std_error, one.statistic, one.df_denom
    estimate[result.status < 0] = np.nan
    pvalues = joint_pvalues(statistic, freedom, m, rank, ddf)
    return BatchTest(
        estimate, error, statistic, rank, freedom, pvalues, L, parsed.rhs, parsed.names, ddf, "model",
        result.stack.design.library, result.labels,
    )  # fmt: skip


def _satterthwaite(
    covariance: Array, slope: Array, shift: Array, inverse: Array, nu: Array, gap: Array, rank: int
) -> tuple[Array, Array]:
    """gap'K^-1 gap and the denominator degrees of freedom, of contrasts that are independent (Fai and Cornelius 1996).

    Parameters
    ----------
    covariance, slope, shift, inverse : (n, m, m), (n, k, m, m), (n, k), (n, k, k) arrays
        See `StackFit.contrasts`; the inverse of the Hessian.
    nu : (n,) array
    gap : (n, m) array
    rank : int
        Of the covariances.
    """
    m = gap.shape[1]
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[:, m - rank :], vectors[:, :, m - rank :]
    contrast = np.einsum("nir,ni->nr", vectors, gap)
    turned = np.einsum("nkij,nir,njr->nkr", slope, vectors, vectors, optimize=True)
    u = turned / values[:, None] - shift[:, :, None]
    return (contrast**2 / values).sum(axis=1), combined_df(delta_df(u, inverse, nu[:, None]))
