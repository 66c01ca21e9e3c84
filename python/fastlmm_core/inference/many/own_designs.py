"""What fits of which each has a design of its own have in common: tests, tables and moderated variances."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...covariance.elements import element_names, sd_and_cor
from ...support.arguments import checked
from ...support.checks import check_level
from ...support.distributions import two_sided_p
from ...support.types import Array
from ...tables.rows import named_rows
from ..hypotheses import Hypothesis, parse_hypothesis
from .moderated import ModeratedTests, moderate
from .several import BatchTests, parse_several
from .summary import Fits, StudySummary, summarise
from .tests import BatchTest, t_columns

if TYPE_CHECKING:
    from ...design.design import Design
    from ..options import Ddf, Information

__all__ = ["OwnDesigns"]


@checked
class OwnDesigns:
    """Fits of which each has a design of its own; arrays have a leading axis over fits."""

    _one: ClassVar[str]
    """What a fit is of, in tables."""

    params: Array
    bse: Array
    sigma2: Array
    criterion: Array
    nobs: NDArray[Any]
    n_groups: NDArray[Any]

    def __len__(self) -> int:
        return len(self.nobs)

    @property
    @abstractmethod
    def _shared(self) -> Design:
        """With the names of the columns."""

    @property
    @abstractmethod
    def _names(self) -> NDArray[Any] | None:
        """Labels of the fits, None where they have none."""

    @property
    @abstractmethod
    def _outcome(self) -> tuple[Array, NDArray[np.bool_], NDArray[np.bool_]]:
        """Covariance matrices of the random effects (n, q, q); whether certified, and whether singular (n,)."""

    @abstractmethod
    def _coefficients(self, ddf: str, information: str) -> tuple[Array, Array]:
        """Standard errors and degrees of freedom (n, p)."""

    @abstractmethod
    def tested(self, asked: Sequence[Hypothesis], ddf: str, information: str) -> list[BatchTest]:
        """Tests of several hypotheses of every fit."""

    @property
    def _labels(self) -> NDArray[Any]:
        return np.arange(len(self)) if self._names is None else self._names

    @property
    def tvalues(self) -> Array:
        """Estimates divided by standard errors (n, p)."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.params / self.bse)

    @property
    def pvalues(self) -> Array:
        """Two-sided p-values of the t tests that each fixed effect is zero (n, p), with Satterthwaite's df."""
        return two_sided_p(self.tvalues, self._coefficients("satterthwaite", "auto")[1])

    def columns(self, level: float, ddf: str, information: str) -> dict[str, Array]:
        """What `tidy` tells of the coefficients, in arrays (n, p).

        Parameters
        ----------
        level, ddf, information
            As for `tidy`.
        """
        check_level(level)
        return t_columns(self.params, *self._coefficients(ddf, information), level)

    def conf_int(self, level: float = 0.95, *, ddf: Ddf = "satterthwaite", information: Information = "auto") -> Array:
        """Confidence intervals of the fixed effects (n, p, 2).

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

    def tidy(self, level: float = 0.95, *, ddf: Ddf = "satterthwaite", information: Information = "auto") -> Any:
        """One row per fit and coefficient.

        Parameters
        ----------
        level : float
            Of the confidence limits.
        ddf, information
            As for `test`.

        Returns
        -------
        frame in the library of the data, or dict of arrays
            The label (or position) of the fit, in a column ``response``, or ``problem`` of `fit_each` and `fit_by`;
            term, estimate, std_error, df, statistic, p_value, conf_low, conf_high.

        Raises
        ------
        LMMError
            For a level outside (0, 1), unknown options, or Kenward-Roger after fits by ML.
        """
        found, names = self.columns(level, ddf, information), self._shared.exog_names
        known: dict[str, Any] = {self._one: np.repeat(self._labels, len(names)), "term": list(names) * len(self)}
        return self._shared.table(known | {name: values.ravel() for name, values in found.items()})

    def to_frame(self) -> Any:
        """One row per fit: sizes, estimates, standard errors, variance parameters, criterion and flags.

        Returns
        -------
        frame in the library of the data, or dict of arrays
            With the labels of the fits as index, in other libraries than pandas as a first column.
        """
        design: Any = self._shared
        columns: dict[str, Any] = {"nobs": self.nobs, "n_groups": self.n_groups}
        columns |= {name: self.params[:, j] for j, name in enumerate(design.exog_names)}
        columns |= {f"std_error_{name}": self.bse[:, j] for j, name in enumerate(design.exog_names)}
        elements = design.random.elements
        covariance, converged, singular = self._outcome
        values = np.column_stack([sd_and_cor(elements, covariance), np.sqrt(self.sigma2)])
        columns |= {name: values[:, k] for k, name in enumerate(element_names(elements))}
        columns |= {"criterion": self.criterion, "converged": converged, "singular": singular}
        return named_rows(design.library, self._one, self._names, columns)

    def test(
        self, hypothesis: Any, rhs: Any = None, *, ddf: Ddf = "satterthwaite", information: Information = "auto"
    ) -> BatchTest:
        """Test linear hypotheses on the fixed effects for every fit, each on its own design.

        Parameters
        ----------
        hypothesis, rhs
            See `LMMResult.test`.
        ddf : {"satterthwaite", "kenward-roger", "residual", "normal"}
        information : {"auto", "expected", "observed"}
            For Kenward-Roger, see `LMMResult.test`.

        Returns
        -------
        BatchTest
            NaN for fits whose rows do not determine the hypothesis.

        Raises
        ------
        LMMError
            For hypotheses that cannot be tested, and Kenward-Roger after fits by ML.
        """
        return self.tested([parse_hypothesis(hypothesis, self._shared.exog_names, rhs)], ddf, information)[0]

    def tests(self, hypotheses: Any, *, ddf: Ddf = "satterthwaite", information: Information = "auto") -> BatchTests:
        """Test several hypotheses on the fixed effects of every fit, each on its own design.

        Parameters
        ----------
        hypotheses : mapping
            Names to hypotheses, each in a form that `test` takes.
        ddf, information
            As for `test`.

        Returns
        -------
        BatchTests
            Names to `BatchTest`.

        Raises
        ------
        LMMError
            As `test`, and for anything but a mapping.
        """
        parsed = parse_several(hypotheses, self._shared.exog_names)
        found = self.tested(list(parsed.values()), ddf, information)
        return BatchTests(dict(zip(parsed, found, strict=True)), self._labels, self._shared.library)

    def summarise(
        self, truth: Any, *, level: float = 0.95, alpha: float = 0.05, ddf: Ddf = "satterthwaite",
        information: Information = "auto",
    ) -> StudySummary:  # fmt: skip
        """Performance of the estimates in a simulation study; see `BatchResult.summarise`.

        Parameters
        ----------
        truth, level, alpha, ddf, information
            As there.

        Returns
        -------
        StudySummary
            Of the certified fits that have all coefficients.

        Raises
        ------
        LMMError
            As there.
        """
        covariance, converged, _ = self._outcome
        table = self.columns(level, ddf, information)
        fits = Fits(self._shared, self.params, covariance, self.sigma2, converged, table)
        return summarise(fits, truth, level, alpha)

    def moderate(self) -> ModeratedTests:
        """t tests of the fixed effects with variances that the fits lend each other; see `BatchResult.moderate`.

        Returns
        -------
        ModeratedTests

        Raises
        ------
        LMMError
            For fewer than three fits.
        """
        freedom = self._coefficients("satterthwaite", "auto")[1]
        return moderate(self._shared.exog_names, self.params, self.bse, freedom, self._labels, self._shared.library)
