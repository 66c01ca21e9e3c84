"""The estimates of many responses, and what users do with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .covariance.elements import element_names, sd_and_cor
from .errors import LMMError
from .estimation.many.batch_fit import BatchFit
from .support.arguments import checked
from .support.display import LINES, Cells, Shown, first_lines
from .support.text_tables import estimate_cells
from .tables.rows import named_rows

if TYPE_CHECKING:
    from .estimation.fit import Fit
    from .inference.many import BatchTest
    from .inference.options import Ddf, Information, Vcov

__all__ = ["BatchResult"]

Array = NDArray[np.float64]


@checked
class BatchResult(Shown, BatchFit):
    """Estimates for many responses; every array has a leading axis over responses.

    Attributes
    ----------
    params, bse : (n_responses, p) arrays
        Fixed effects and standard errors; NaN for dropped columns and for responses that could not be fitted.
    sigma2, criterion, llf, gradient_norm : (n_responses,) arrays
    converged, singular : (n_responses,) bool arrays
    n_evaluations : (n_responses,) int array
    invalid : int array
        Responses with values that are not finite, or without variation: converged is False, estimates are NaN.
    labels : (n_responses,) array or None
        Names of the responses, where they were columns of a table: ``batch["BRCA1"]``, the index of `to_frame`.
    """

    @property
    def tvalues(self) -> Array:
        """Estimates divided by standard errors (n_responses, p)."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.params / self.bse)

    @property
    def df(self) -> Array:
        """Satterthwaite's degrees of freedom of the t tests that each fixed effect is zero (n_responses, p).

        `tidy` and `test` offer others.
        """
        from .inference.many import df

        return df(self)

    @property
    def pvalues(self) -> Array:
        """Two-sided p-values of the t tests that each fixed effect is zero (n_responses, p), with Satterthwaite's df.

        `tidy` and `test` offer others.
        """
        from .inference.many import pvalues

        return pvalues(self)

    def tidy(
        self,
        level: float = 0.95,
        *,
        ddf: Ddf = "satterthwaite",
        information: Information = "auto",
        vcov: Vcov = "model",
        cluster: Any = None,
    ) -> Any:
        """One row per response and coefficient.

        Parameters
        ----------
        level : float
            Of the confidence limits.
        ddf : {"satterthwaite", "kenward-roger", "residual", "normal"}
            Degrees of freedom; Kenward-Roger with adjusted standard errors.
        information : {"auto", "expected", "observed"}
            For Kenward-Roger, see `LMMResult.test`.
        vcov, cluster
            For robust covariances, as for `test`.

        Returns
        -------
        frame in the library of the model's data, or dict of arrays
            response (its label or position), term, estimate, std_error, df, statistic, p_value, conf_low, conf_high.

        Raises
        ------
        LMMError
            For a level outside (0, 1), unknown options, Kenward-Roger after fits by ML, or with the observed
            information where the responses were given as a stream and are gone.
        """
        from .inference.many import tidy_columns

        return self.model.table(tidy_columns(self, level, ddf, information, vcov, cluster))

    def test(
        self,
        hypothesis: Any,
        rhs: Any = None,
        *,
        ddf: Ddf = "satterthwaite",
        information: Information = "auto",
        vcov: Vcov = "model",
        cluster: Any = None,
    ) -> BatchTest:
        """Test linear hypotheses on the fixed effects for every response.

        Parameters
        ----------
        hypothesis, rhs
            See `LMMResult.test`.
        ddf : {"satterthwaite", "kenward-roger", "residual", "normal"}
        information : {"auto", "expected", "observed"}
            For Kenward-Roger, see `LMMResult.test`.
        vcov, cluster
            For robust covariances, see `LMMResult.test`.  Each response is then fitted once more by itself, which takes
            much longer than the batch did.

        Returns
        -------
        BatchTest

        Raises
        ------
        LMMError
            For hypotheses that cannot be tested, or robust covariances, Kenward-Roger with the observed information and
            Satterthwaite's formula for other than single coefficients where the responses were given as a stream and
            are gone.
        """
        from .inference.many import test

        return test(self, hypothesis, rhs, ddf, information, vcov, cluster)

    def random_effects(self, which: Any = None) -> Any:
        """BLUPs of the random effects, computed on request from the responses.

        Parameters
        ----------
        which : indices, labels or slice, optional
            Responses wanted; by default all.

        Returns
        -------
        (n_wanted, n_groups, q) array
            NaN where a response could not be fitted.  A dict by factor where there are several.

        Raises
        ------
        LMMError
            Where the responses were given as a stream and are gone, or for an unknown label.
        """
        if self.labels is not None and isinstance(which, str):
            which = self.place(which)
        elif self.labels is not None and isinstance(which, (list, tuple)) and any(isinstance(i, str) for i in which):
            which = [self.place(label) for label in which]
        try:
            chosen = np.atleast_1d(np.arange(len(self))[slice(None) if which is None else which])
            if chosen.ndim != 1:
                raise IndexError
        except Exception as error:  # whatever an index may raise
            raise LMMError(f"which must be positions below {len(self)}, a mask of so many values or a slice") from error
        out = self.blups(chosen)
        factors = self.model.factors
        if len(factors) == 1:
            return out[0]
        return {f.grouping.name: values for f, values in zip(factors, out, strict=True)}

    def __getitem__(self, i: Any) -> Fit:
        """The full result of one response, by position (an integer) or label.

        Raises
        ------
        IndexError
            For a position outside the batch.
        LMMError
            For anything but the position or label of one response, where the responses were given as a stream and are
            gone, or the response could not be fitted.
        """
        if isinstance(i, (slice, list, np.ndarray)):
            raise LMMError("batch[i] is the result of one response; write [batch[i] for i in ...] for several")
        if isinstance(i, bool) or not isinstance(i, (int, np.integer)):
            i = self.place(i)
        if not -len(self) <= i < len(self):
            raise IndexError(f"response {i} of {len(self)}")
        return self.one(int(i))

    def to_frame(self) -> Any:
        """One row per response: estimates, standard errors, variance parameters, criterion and flags.

        Returns
        -------
        frame in the library of the model's data, or dict of arrays
            With the labels of the responses as index, in other libraries than pandas as a column ``response``.
        """
        names = self.model.exog_names
        columns: dict[str, Any] = {name: self.params[:, j] for j, name in enumerate(names)}
        columns |= {f"std_error_{name}": self.bse[:, j] for j, name in enumerate(names)}
        elements = self.model.random.elements
        values = np.column_stack([sd_and_cor(elements, self.covariance), np.sqrt(self.sigma2)])
        columns |= {name: values[:, k] for k, name in enumerate(element_names(elements))}
        columns |= {
            "criterion": self.criterion,
            "converged": self.converged,
            "singular": self.singular,
        }
        return named_rows(self.model.library, "response", self.labels, columns)

    def _shown(self) -> Iterator[str | Cells]:
        yield repr(self)[1:-1]
        some = range(min(len(self), LINES))
        columns = [
            estimate_cells(self.params[some, j].tolist(), self.bse[some, j].tolist(), 3)
            for j in range(self.params.shape[1])
        ]
        labels = range(len(self)) if self.labels is None else self.labels
        rows = [
            [
                str(labels[i]),
                *(column[i] for column in columns),
                f"{np.sqrt(self.sigma2[i]):.4g}",
                "yes" if self.converged[i] else "no",
            ]
            for i in some
        ]
        yield Cells(["", *self.model.exog_names, "sigma", "certified"], first_lines(rows, count=len(self)))

    def __repr__(self) -> str:
        kind = "REML" if self.reml else "ML"
        return (
            f"<BatchResult: {len(self)} {kind} fits, {int(self.converged.sum())} certified, "
            f"{int(self.singular.sum())} singular, {len(self.invalid)} not fitted>"
        )
