"""What fits of which each has a design of its own have in common: tests, tables and moderated variances."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from ...covariance.elements import element_names, sd_and_cor
from ...errors import LMMError
from ...formula.coding import FixedTerm, fixed_terms
from ...support.arguments import checked
from ...support.checks import check_level
from ...support.distributions import two_sided_p
from ...support.types import Array
from ...tables.rows import FitLabels, named_rows
from ..anova import TYPES, hypotheses
from ..hypotheses import Hypothesis, parse_hypothesis
from ..likelihood_ratio.compare import Null
from ..likelihood_ratio.many import BatchComparison
from ..likelihood_ratio.own_designs import FitsToCompare, compared
from ..wald import wald
from .labelled import dataset
from .means import Functions
from .moderated import ModeratedTests, moderate
from .own_permutation import Source, own_permute
from .permutation import Permutations
from .rearrangements import Scheme
from .several import BatchTests, parse_several, term_hypotheses
from .summary import Fits, StudySummary, summarise
from .tests import BatchTest, t_columns
from .variances import BatchFractions, BatchVariances, Shared
from .with_means import WithMeans

if TYPE_CHECKING:
    from ...design.design import Design
    from ...estimation.fit import Fit
    from ...estimation.model import Model
    from ...support.seeds import Seed
    from ..options import Ddf, Information

__all__ = ["OwnDesigns", "Whole", "needs_formula"]


class Whole(NamedTuple):
    """A design with all rows, in the place of a result."""

    model: Model


def needs_formula(model: Model) -> None:
    """Refuse means and slopes of models from arrays."""
    if model.spec is None:
        raise LMMError(
            "means and slopes are of models from a formula: give test() the linear function, e.g. test('x1 - x2 = 0')"
        )


@checked
class OwnDesigns(WithMeans):
    """Fits of which each has a design of its own; arrays have a leading axis over fits."""

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
    def _one(self) -> str:
        """What a fit is of, in tables."""

    @property
    @abstractmethod
    def _record(self) -> type[Fit]:
        """The class of the record of one fit."""

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

    @property
    def llf(self) -> Array:
        """Maximised log-likelihoods (n,), restricted by REML."""
        return -0.5 * self.criterion

    @property
    def G(self) -> dict[str, Array]:
        """Covariance matrices of the random effects by term (n, q, q)."""
        design, whole = self._shared, self._outcome[0]
        return {
            name: whole[:, block.start : block.stop, block.start : block.stop]
            for name, block in zip(design.term_names, design.structure.blocks, strict=True)
        }

    @abstractmethod
    def _coefficients(self, ddf: str, information: str) -> tuple[Array, Array]:
        """Standard errors and degrees of freedom (n, p)."""

    @abstractmethod
    def tested(self, asked: Sequence[Hypothesis], ddf: str, information: str) -> list[BatchTest]:
        """Tests of several hypotheses of every fit."""

    @abstractmethod
    def _whole(self) -> Model:
        """A model of the columns that all fits have, of which names and linear functions are taken."""

    def _terms(self) -> tuple[FixedTerm, ...]:
        """Terms of the fixed part, in the order of the columns."""
        return fixed_terms(self._shared)

    def _hypotheses(self, kind: str) -> tuple[dict[str, Array], tuple[str, ...]]:
        """The contrasts of each term that all fits have, and notes on them; see `anova.hypotheses`."""
        return hypotheses(cast("Fit", Whole(self._whole())), kind, self._terms())

    @abstractmethod
    def _offsets(self) -> Array:
        """Mean of the offset of each fit (n,)."""

    @abstractmethod
    def _shares(self) -> Shared:
        """What shares of the variance are made of."""

    @abstractmethod
    def _to_compare(self) -> FitsToCompare:
        """What likelihood ratio tests take."""

    @abstractmethod
    def _source(self) -> Source:
        """What is permuted."""

    @abstractmethod
    def one(self, i: int) -> Fit:
        """The full record of one fit.

        Parameters
        ----------
        i : int
            Position.
        """

    @abstractmethod
    def _components(self) -> BatchVariances:
        """See `variance_components`."""

    @abstractmethod
    def _effect_tests(self, term: str | None, null: Null, n_sim: int | None, seed: Seed) -> dict[str, BatchComparison]:
        """See `random_effect_test`."""

    @property
    def _labels(self) -> NDArray[Any]:
        return np.arange(len(self)) if self._names is None else self._names

    @property
    def _called(self) -> FitLabels:
        return FitLabels(self._shared.library, self._names, self._one)

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

    def to_xarray(self) -> Any:
        """The estimates as an xarray Dataset: dimensions ``response`` (or ``problem``), ``term`` and ``random``.

        Returns
        -------
        xarray.Dataset
            As that of `BatchResult`, with nobs and n_groups.

        Raises
        ------
        LMMError
            Without xarray.
        """
        covariance, converged, singular = self._outcome
        sizes = {"nobs": self.nobs, "n_groups": self.n_groups}
        by_term = {"params": self.params, "bse": self.bse, "df": self._coefficients("satterthwaite", "auto")[1]}
        single = {"sigma2": self.sigma2, "criterion": self.criterion, "converged": converged, "singular": singular}
        return dataset(self._one, self._labels, self._shared, by_term, covariance, single | sizes)

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
        return BatchTests(dict(zip(parsed, found, strict=True)), self._labels, self._shared.library, one=self._one)

    def anova(self, type: str = "III", *, ddf: Ddf = "satterthwaite", information: Information = "auto") -> BatchTests:
        """F tests of the terms of the fixed part of every fit, each on its own rows.

        Parameters
        ----------
        type : {"III", "II", "I"}
            Hypotheses of type III are those of the columns that all fits have.  Those of types I and II depend on the
            rows: each fit is then made once more by itself, which takes a millisecond or so.
        ddf, information
            As for `test`.

        Returns
        -------
        BatchTests
            By term; without the terms of which nothing can be estimated, which `notes` name.

        Raises
        ------
        LMMError
            For an unknown type, and as `test`.
        """
        kind = TYPES.get(str(type), type)
        if kind not in TYPES.values():
            raise LMMError(f"type={type!r} is unknown: use 'I', 'II' or 'III'")
        found, notes = self._hypotheses(kind)
        parsed = term_hypotheses(found)
        done = dict(zip(parsed, self.tested(list(parsed.values()), ddf, information), strict=True))
        if kind != "III":
            self._own_hypotheses(done, kind, ddf, information)
        return BatchTests(done, self._labels, self._shared.library, notes, self._one)

    def _own_hypotheses(self, done: dict[str, BatchTest], kind: str, ddf: str, information: str) -> None:
        """Put tests of the hypotheses of each fit in the place of those of all of them."""
        for test in done.values():
            for array in (test.estimate, test.std_error, test.statistic, test.df_denom, test.pvalues):
                array[:] = np.nan
        terms = self._terms()
        for i in np.flatnonzero(np.isfinite(self.criterion)).tolist():
            fit = self.one(i)
            for name, L in hypotheses(fit, kind, terms)[0].items():
                if name not in done or len(L) != done[name].df_num:
                    continue
                test, one = done[name], wald(fit, L, None, ddf, information)
                test.estimate[i], test.std_error[i] = one.estimate, one.std_error
                test.statistic[i], test.df_denom[i], test.pvalues[i] = one.statistic, one.df_denom, one.pvalue

    def _functions(self, ddf: str, information: str) -> Functions:
        model = self._whole()
        needs_formula(model)
        return Functions(
            model, self._record, self._called, self._offsets(),
            lambda asked: self.tested(asked, ddf, information),
        )  # fmt: skip

    def icc(self) -> Any:
        """Intraclass correlations (n,), a dict by factor where there are several; see `LMMResult.icc`."""
        return self._shares().icc()

    def r2(self) -> dict[str, Array]:
        """``marginal`` and ``conditional`` R^2 (n,) each; see `LMMResult.r2`."""
        return self._shares().r2()

    def variance_fractions(self) -> BatchFractions:
        """Shares of the variance of every fit that belong to each term; see `BatchResult.variance_fractions`.

        Returns
        -------
        BatchFractions
        """
        return self._shares().fractions(self._called, self._terms())

    def variance_components(self) -> BatchVariances:
        """Variance parameters of every fit with standard errors; see `BatchResult.variance_components`.

        Returns
        -------
        BatchVariances
        """
        return self._components()

    def random_effect_test(
        self, term: str | None = None, *, null: Null = "auto", n_sim: int | None = None, seed: Seed = None
    ) -> dict[str, BatchComparison]:
        """Likelihood ratio tests of the random effects of every fit; see `BatchResult.random_effect_test`.

        Parameters
        ----------
        term, null, n_sim, seed
            As there; the null distribution is that of each design, which takes some time where it is drawn.

        Returns
        -------
        dict of str to BatchComparison
            By effect.

        Raises
        ------
        LMMError
            As there.
        """
        return self._effect_tests(term, null, n_sim, seed)

    def compare(
        self, smaller: Any, *, null: Null = "auto", n_sim: int | None = None, seed: Seed = None
    ) -> BatchComparison:
        """Likelihood ratio test of every fit against that of a smaller model of the same rows.

        Parameters
        ----------
        smaller : EachResult or MaskedBatch
            Of a model nested in this one; both by ML where fixed parts differ.
        null, n_sim, seed
            As for `BatchResult.compare`.  The null distribution is that of each design, which takes some time where it
            is drawn.

        Returns
        -------
        BatchComparison

        Raises
        ------
        LMMError
            For fits that are not of the same rows or not nested, or a distribution that does not apply.
        """
        if not isinstance(smaller, OwnDesigns):
            if not hasattr(smaller, "converged"):
                raise LMMError(f"smaller must be fits of the same responses, not of type {type(smaller).__name__!r}")
            raise LMMError(
                f"smaller is a {type(smaller).__name__}, which shares a design; compare it with fits on that design, "
                "or fit both models with the same weights, offset, covariates and missing="
            )
        return compared(self._to_compare(), smaller._to_compare(), "smaller model", null, n_sim, seed)

    def permute(
        self,
        hypothesis: Any,
        n: int = 1000,
        *,
        scheme: Scheme = "freedman-lane",
        blocks: Any = None,
        reduce: Callable[[Array], Any] | None = None,
        refit: bool = False,
        seed: Seed = None,
        n_jobs: int | None = None,
    ) -> Permutations:
        """Permutation test of a hypothesis on the fixed effects, each fit on its own rows; see `BatchResult.permute`.

        Parameters
        ----------
        hypothesis, n, scheme, reduce, refit, seed, n_jobs
            As there.  All fits are rearranged by the same random numbers: responses on one design by the place of an
            observation in it, other problems by its number among their rows.
        blocks : array of labels, column, or name of a factor or column, optional
            One label for each row of the design, or of all problems together.

        Returns
        -------
        Permutations

        Raises
        ------
        LMMError
            As there.
        """
        return own_permute(
            self._source(), hypothesis, n, scheme, blocks, reduce=reduce, refit=refit, seed=seed, n_jobs=n_jobs
        )

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
        called = self._called._replace(labels=self._labels)
        return moderate(self._shared.exog_names, self.params, self.bse, freedom, called)
