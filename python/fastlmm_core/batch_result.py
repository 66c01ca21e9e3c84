"""The estimates of many responses, and what users do with them.

As long as its texts: a method calls one function, and what users read of it stands here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .covariance.elements import element_names, sd_and_cor
from .estimation.many.batch_fit import BatchFit
from .estimation.many.parts import chosen_responses, concatenated, part_of, with_responses
from .inference.many.with_means import WithMeans
from .support.arguments import checked
from .support.display import LINES, Cells, Shown, first_lines
from .support.text_tables import estimate_cells
from .support.types import Array
from .tables.rows import FitLabels, named_rows

if TYPE_CHECKING:
    from .inference.likelihood_ratio.compare import Null
    from .inference.likelihood_ratio.many import BatchComparison
    from .inference.many.means import Functions
    from .inference.many.moderated import ModeratedTests
    from .inference.many.permutation import Permutations
    from .inference.many.rearrangements import Scheme
    from .inference.many.several import BatchTests
    from .inference.many.summary import StudySummary
    from .inference.many.tests import BatchTest
    from .inference.many.variances import BatchFractions, BatchVariances
    from .inference.options import Ddf, Information, Vcov
    from .support.seeds import Seed

__all__ = ["BatchResult"]


@checked
class BatchResult(Shown, WithMeans, BatchFit):
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
        from .inference.many.tests import df

        return df(self)

    @property
    def pvalues(self) -> Array:
        """Two-sided p-values of the t tests that each fixed effect is zero (n_responses, p), with Satterthwaite's df.

        `tidy` and `test` offer others.
        """
        from .inference.many.tests import pvalues

        return pvalues(self)

    def moderate(self) -> ModeratedTests:
        """t tests of the fixed effects with variances that the responses lend each other (limma's empirical Bayes).

        The squared standard errors of a coefficient, with their Satterthwaite degrees of freedom, are drawn towards a
        common value: the posterior means of Smyth (2004).  For ordinary least squares this is limma's moderated t.

        Returns
        -------
        ModeratedTests

        Raises
        ------
        LMMError
            For fewer than three responses that were fitted.
        """
        from .inference.many.moderated import moderate

        model = self.model
        called = FitLabels(model.library, self.labels)
        return moderate(model.exog_names, self.params, self.bse, self.satterthwaite, called)

    def conf_int(self, level: float = 0.95, *, ddf: Ddf = "satterthwaite", information: Information = "auto") -> Array:
        """Confidence intervals of the fixed effects (n_responses, p, 2): estimate and t quantile times standard error.

        Parameters
        ----------
        level : float
        ddf : {"satterthwaite", "kenward-roger", "residual", "normal"}
        information : {"auto", "expected", "observed"}
            For Kenward-Roger, see `LMMResult.test`.

        Raises
        ------
        LMMError
            As `tidy`.
        """
        from .inference.many.tests import tidy_columns

        found = tidy_columns(self, level, ddf, information)
        return np.column_stack([found["conf_low"], found["conf_high"]]).reshape(*self.params.shape, 2)

    def cov_params(self) -> Array:
        """Covariance matrices of the fixed effects (n_responses, p, p), sigma^2 (X'V^-1 X)^-1; NaN as in `bse`."""
        from .inference.many.tests import covariances

        return covariances(self)

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
            information where a pickle has left the responses out.
        """
        from .inference.many.tests import tidy_columns

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
            For hypotheses that cannot be tested; where the responses are gone for robust covariances, where a pickle
            has left them out for Kenward-Roger with the observed information and Satterthwaite's formula for other
            than single coefficients.
        """
        from .inference.many.tests import test

        return test(self, hypothesis, rhs, ddf, information, vcov, cluster)

    def tests(
        self,
        hypotheses: Any,
        *,
        ddf: Ddf = "satterthwaite",
        information: Information = "auto",
        vcov: Vcov = "model",
        cluster: Any = None,
    ) -> BatchTests:
        """Test several hypotheses on the fixed effects of every response, in one pass over the responses.

        Parameters
        ----------
        hypotheses : mapping
            Names to hypotheses, each in a form that `test` takes.
        ddf, information, vcov, cluster
            As for `test`.

        Returns
        -------
        BatchTests
            Names to `BatchTest`.

        Raises
        ------
        LMMError
            As `test`, and for anything but a mapping.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> batch = fit.simulate_fit(1000, seed=1)
        >>> found = batch.tests({"slope": "Days", "ten a day": "Days = 10"})
        >>> found.pvalues.shape
        (1000, 2)
        """
        from .inference.many.several import several

        return several(self, hypotheses, ddf, information, vcov, cluster)

    def anova(self, type: str = "III", *, ddf: Ddf = "satterthwaite", information: Information = "auto") -> BatchTests:
        """F tests of the terms of the fixed part of every response, with the hypotheses of `LMMResult.anova`.

        Parameters
        ----------
        type : {"III", "II", "I"}
        ddf : {"satterthwaite", "kenward-roger", "residual", "normal"}
        information : {"auto", "expected", "observed"}

        Returns
        -------
        BatchTests
            By term; without the terms of which nothing can be estimated, which `notes` name.

        Raises
        ------
        LMMError
            For an unknown type, and as `test`.
        """
        from .inference.many.several import anova

        return anova(self, type, ddf, information)

    def _functions(self, ddf: str, information: str) -> Functions:
        from .inference.many.means import Functions

        return Functions.of(self, ddf, information)

    def summarise(
        self,
        truth: Any,
        *,
        level: float = 0.95,
        alpha: float = 0.05,
        ddf: Ddf = "satterthwaite",
        information: Information = "auto",
    ) -> StudySummary:
        """Performance of the estimates in a simulation study, each figure with its Monte Carlo standard error.

        Bias, empirical and model standard error, mean squared error, coverage and rejection (Morris, White and
        Crowther 2019, Stat. Med. 38, 2074-2102), as R's rsimsum has them.

        Parameters
        ----------
        truth : LMMResult, mapping of name to value, or array
            What generated the data; or true values of some parameters, by the names of `to_frame`, or of all
            coefficients in their order.  What the model that generates does not have is zero there.
        level : float
            Of the intervals whose coverage is counted.
        alpha : float
            Of the tests that a coefficient is zero.
        ddf, information
            As for `tidy`.

        Returns
        -------
        StudySummary
            Of the certified fits; of structured residuals without their parameters.

        Raises
        ------
        LMMError
            For fewer than two certified fits, unknown names, or options as for `tidy`.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> study = fit.simulate_fit(2000, seed=1).summarise(fit)
        >>> bool(abs(study.cover[1] - 0.95) < 4 * study.mcse["cover"][1])
        True
        """
        from .inference.many.summary import Fits, summarise
        from .inference.many.tests import tidy_columns

        table = tidy_columns(self, level, ddf, information)
        found = {name: table[name].reshape(self.params.shape) for name in tuple(table)[2:]}
        fits = Fits(self.model.design, self.params, self.covariance, self.sigma2, self.converged, found)
        return summarise(fits, truth, level, alpha)

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
        """Permutation test of a hypothesis on the fixed effects, with the same permutations for all responses.

        Residuals from the fit under the null hypothesis are rearranged and take the place of the response.

        Parameters
        ----------
        hypothesis
            As for `test`.
        n : int
            Permutations.
        scheme : {"freedman-lane", "sign-flip", "whole", "within"}
            "freedman-lane": residuals with the random effects taken out, by V^(-1/2) at the estimates under the null
            hypothesis, are permuted over all observations (within `blocks`, if given).  "within": residuals are
            permuted within each block; for effects that vary within blocks.  "whole": blocks of one size change places,
            with their order inside; for effects between blocks.  "sign-flip": the residuals of a block change their
            sign together.
        blocks : (nobs,) array of labels, column, or name of a factor or column, optional
            By default the groups of the (coarsest) grouping factor; for "freedman-lane" none.
        reduce : callable, optional
            Makes a number, or several, of the map (n_responses,) of t statistics (F for several rows) of one
            permutation: the mass of the largest cluster, TFCE.  By default the largest absolute value.
        refit : bool
            Estimate the variances for each permutation, instead of keeping those under the null hypothesis.
        seed : int, sequence of int, SeedSequence or Generator, optional
            Each permutation has a stream of its own.
        n_jobs : int, optional
            Threads; results do not depend on it.

        Returns
        -------
        Permutations
            The map, p-values by response and family-wise, and the null distribution.

        Raises
        ------
        LMMError
            For hypotheses that cannot be tested, unknown schemes, blocks of which nothing can be exchanged, structured
            residuals, or where the responses are gone.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> batch = fit.at(params=[250.0, 0.0]).simulate_fit(20, seed=1)
        >>> found = batch.permute("Days", 199, scheme="sign-flip", seed=2)
        >>> bool(found.familywise().min() > 0.01)
        True
        """
        from .inference.many.permutation import permute

        return permute(self, hypothesis, n, scheme, blocks, reduce=reduce, refit=refit, seed=seed, n_jobs=n_jobs)

    def compare(
        self, smaller: BatchResult, *, null: Null = "auto", n_sim: int | None = None, seed: Seed = None
    ) -> BatchComparison:
        """Likelihood ratio test of these fits against those of a smaller model, for every response.

        Parameters
        ----------
        smaller : BatchResult
            Fits of the same responses by a model nested in this one; both by ML where fixed parts differ.
        null : {"auto", "chi2", "mixture", "exact"}
            Null distribution, see `compare`.  It is that of the design, drawn once for all responses, unless several
            variances are tested beside others: then its weights are those of each response.
        n_sim, seed
            As for `compare`.

        Returns
        -------
        BatchComparison

        Raises
        ------
        LMMError
            For batches that are not of the same responses or not nested, or a distribution that does not apply.
        """
        from .inference.likelihood_ratio.many import compare

        return compare(self, smaller, null, n_sim, seed)

    def random_effect_test(
        self, term: str | None = None, *, null: Null = "auto", n_sim: int | None = None, seed: Seed = None
    ) -> dict[str, BatchComparison]:
        """Likelihood ratio tests of the random effects of every response, each left out in turn.

        Parameters
        ----------
        term, null, n_sim, seed
            As for `LMMResult.random_effect_test`; the null distribution as for `compare`.

        Returns
        -------
        dict of str to BatchComparison
            By effect.

        Raises
        ------
        LMMError
            As `LMMResult.random_effect_test`, and where the responses are gone.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> found = fit.simulate_fit(200, seed=1).random_effect_test("Days", null="mixture")
        >>> list(found)
        ['Days | Subject']
        """
        from .inference.likelihood_ratio.many import random_effect_test

        return random_effect_test(self, term, null, n_sim, seed)

    def variance_components(self) -> BatchVariances:
        """Variance parameters of every response with standard errors, as those of `LMMResult.variance_components`.

        Returns
        -------
        BatchVariances

        Raises
        ------
        LMMError
            Where the responses are gone that a pickle leaves out.
        """
        self.model.needs_unknown_variance("variance_components() of many responses", "fit the responses one by one")
        from .inference.many.variances import components

        return components(self)

    def icc(self) -> Any:
        """Intraclass correlations (n_responses,), a dict by factor where there are several; see `LMMResult.icc`."""
        from .inference.many.variances import Shared

        return Shared.of(self).icc()

    def r2(self) -> dict[str, Array]:
        """``marginal`` and ``conditional`` R^2 (n_responses,) each; see `LMMResult.r2`."""
        from .inference.many.variances import Shared

        return Shared.of(self).r2()

    def variance_fractions(self) -> BatchFractions:
        """Shares of the variance of every response that belong to each term and to the residual.

        That of a random term is the mean of z'Gz over the observations.  Of the fixed part the variance of X beta over
        the observations is divided among its terms in proportion to the variance of what each adds (Hoffman and
        Schadt 2016, BMC Bioinformatics 17, 483).

        Returns
        -------
        BatchFractions
        """
        from .inference.many.variances import Shared

        return Shared.of(self).fractions(FitLabels(self.model.library, self.labels))

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
        chosen = chosen_responses(self, which)
        out = self.blups(chosen)
        factors = self.model.factors
        if len(factors) == 1:
            return out[0]
        return {f.grouping.name: values for f, values in zip(factors, out, strict=True)}

    def __getitem__(self, i: Any) -> Any:
        """The full result of one response, by position (an integer) or label, or a batch of some of them.

        Parameters
        ----------
        i : int, label, slice, mask or list
            ``batch[3]`` and ``batch["TP53"]`` are results of one response; ``batch[3:5]``, ``batch[batch.converged]``
            and ``batch[["TP53", "MYC"]]`` are batches, which share the responses and are not fitted again.

        Raises
        ------
        IndexError
            For a position outside the batch.
        LMMError
            For an unknown label, or one response where the responses are gone or it could not be fitted.
        """
        if isinstance(i, (slice, list, np.ndarray)) and not (isinstance(i, np.ndarray) and i.ndim == 0):
            return part_of(self, chosen_responses(self, i))
        if isinstance(i, bool) or not isinstance(i, (int, np.integer)):
            i = self.place(i)
        if not -len(self) <= i < len(self):
            raise IndexError(f"response {i} of {len(self)}")
        return self.one(int(i) % len(self))

    @staticmethod
    def concat(batches: Sequence[BatchResult]) -> BatchResult:
        """One batch of the responses of several, in this order.

        Parameters
        ----------
        batches : sequence of BatchResult
            On the same design, all by REML or all by ML.

        Returns
        -------
        BatchResult
            With labels where all have labels, and with responses where all have theirs.

        Raises
        ------
        LMMError
            For no batch, or batches of different designs or criteria.
        """
        return concatenated(list(batches))

    def with_responses(self, Y: Any) -> BatchResult:
        """This batch with its responses, where they are gone: after a pickle, which leaves them out, or a stream.

        Parameters
        ----------
        Y : (n_responses, nobs) array or table
            What was fitted.

        Raises
        ------
        LMMError
            For Y of another shape; for other numbers when they are used.
        """
        return with_responses(self, Y)

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

    def to_xarray(self) -> Any:
        """The estimates as an xarray Dataset, with the dimensions ``response``, ``term`` and ``random``.

        Returns
        -------
        xarray.Dataset
            params, bse, df (response, term), covariance (response, random, random_too), sigma2, criterion, converged
            and singular (response).

        Raises
        ------
        LMMError
            Without xarray.
        """
        from .inference.many.labelled import dataset

        labels = np.arange(len(self)) if self.labels is None else self.labels
        by_term = {"params": self.params, "bse": self.bse, "df": self.satterthwaite}
        single = {
            "sigma2": self.sigma2, "criterion": self.criterion, "converged": self.converged, "singular": self.singular,
        }  # fmt: skip
        return dataset("response", labels, self.model.design, by_term, self.covariance, single)

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
