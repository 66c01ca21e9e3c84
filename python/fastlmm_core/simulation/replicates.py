"""Replicates of a bootstrap, and what they say: standard errors, bias and intervals."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError
from ..support.arguments import checked, outside
from ..support.checks import check_level
from ..support.display import Cells, Shown, first_lines
from ..support.text_tables import aligned_cells, estimate_cells
from ..support.types import Array
from ..tables.columns import native_frame
from ..tables.rows import limits_table
from . import structured
from .intervals import Method, Sample, limits
from .resampling import without_groups

if TYPE_CHECKING:
    from ..estimation.fit import Fit

__all__ = ["BootstrapResult"]


@checked
@dataclass(frozen=True, repr=False)
class BootstrapResult(Shown):
    """Replicates of a bootstrap; prints as text and shows as HTML in notebooks.

    Attributes
    ----------
    names : tuple of str
        Of the statistics.
    estimate : (k,) array
        At the original fit.
    replicates : (n, k) array
        NaN where a replicate could not be fitted.
    replicate_std_error : (n, k) array or None
        Of each replicate's statistics, NaN where there is none; needed for studentised intervals.
    fit_std_error : (k,) array or None
        Standard errors of the original fit.
    singular, converged : (n,) bool arrays
    kind : str
    kinds : tuple of str
        What each statistic is: "fixed", "sd", "cor", "sigma", "residual" for structured residuals, or "statistic" for
        the caller's own.
    """

    names: tuple[str, ...]
    estimate: Array
    replicates: Array
    replicate_std_error: Array | None
    fit_std_error: Array | None
    singular: NDArray[np.bool_]
    converged: NDArray[np.bool_]
    kind: str
    kinds: tuple[str, ...]
    _fit: Fit = field(repr=False)

    @property
    def library(self) -> str | None:
        """Of labelled limits; None for a model from arrays."""
        model = self._fit.model
        return model.library if model.design.labelled else None

    @property
    def std_error(self) -> Array:
        """Bootstrap standard errors (k,)."""
        return np.asarray(np.nanstd(self.replicates, axis=0, ddof=1))

    @property
    def bias(self) -> Array:
        """Mean of the replicates less the estimate (k,)."""
        return np.asarray(np.nanmean(self.replicates, axis=0) - self.estimate)

    @property
    def singular_fraction(self) -> float:
        """Share of replicates on the boundary."""
        return float(np.mean(self.singular))

    def conf_int(
        self,
        level: float = 0.95,
        method: Method = "auto",
        names: str | Sequence[str] | None = None,
    ) -> Any:
        """Bootstrap intervals (Davison and Hinkley 1997, Bootstrap Methods and their Application, ch. 5).

        Parameters
        ----------
        level : float
        method : {"auto", "percentile", "basic", "normal", "bca", "studentized"}
            "studentized" needs standard errors, which exist for fixed effects; "bca" corrects for bias and
            acceleration, the latter by deletion of each independent group, and does not exist for an estimate on the
            boundary; "basic" is refused for standard deviations and correlations, where it covers much too little.
            "auto" takes what covers best: studentised for fixed effects, BCa for standard deviations that are
            estimated inside and whose groups can be deleted (up to 1,000), and percentiles for all others.
            `interval_methods` says which it took.
        names : str or sequence of str, optional
            Statistics wanted, "fixed" or "random" (with sigma); by default all.

        Returns
        -------
        frame, or (k, 2) array for a model from arrays
            Columns conf_low, conf_high, with the names of the statistics; NaN where a method does not apply.

        Raises
        ------
        LMMError
            For an unknown method, level or name, a method that the statistics do not allow, or where no statistic has
            standard errors.

        Warns
        -----
        RuntimeWarning
            For statistics without a BCa interval, with the reason.
        """
        check_level(level)
        wanted = self._places(names)
        found = limits(self._sample(wanted), level, method)
        if found.reasons:
            said = "; ".join(f"{name}, {reason}" for name, reason in found.reasons.items())
            warnings.warn(
                f"no BCa interval: {said}. Percentiles (method='auto') or profile() have one",
                RuntimeWarning,
                stacklevel=outside(),
            )
        return limits_table(self.library, [self.names[j] for j in wanted], found.bounds)

    @cached_property
    def interval_methods(self) -> dict[str, str]:
        """Which method ``conf_int(method="auto")`` takes for each statistic."""
        found = limits(self._sample(range(len(self.names))), 0.95, "auto")
        return dict(zip(self.names, found.methods, strict=True))

    def _places(self, names: str | Sequence[str] | None) -> list[int]:
        """Positions of the statistics wanted."""
        if names is None:
            return list(range(len(self.names)))
        wanted = [names] if isinstance(names, str) else list(names)
        out: list[int] = []
        for name in wanted:
            if name in ("fixed", "random"):
                out += [j for j, kind in enumerate(self.kinds) if (kind == "fixed") == (name == "fixed")]
            elif name in self.names:
                out.append(self.names.index(name))
            else:
                raise LMMError(f"names: there is no {name!r}; use 'fixed', 'random' or some of {', '.join(self.names)}")
        return list(dict.fromkeys(out))

    def _sample(self, wanted: Sequence[int]) -> Sample:
        at = list(wanted)
        errors, replicate_errors = self.fit_std_error, self.replicate_std_error

        def deleted() -> Array:
            fit = self._fit
            without = without_groups if fit.model.residual is None else structured.without_clusters
            found: Array = fit.once("statistics without groups", lambda: without(fit))
            return found[:, at]

        return Sample(
            names=tuple(self.names[j] for j in at),
            kinds=tuple(self.kinds[j] for j in at),
            estimate=self.estimate[at],
            replicates=self.replicates[:, at],
            errors=None if errors is None else errors[at],
            replicate_errors=None if replicate_errors is None else replicate_errors[:, at],
            n_groups=max(f.grouping.m for f in self._fit.model.factors),
            deleted=deleted,
        )

    def join(self, *others: BootstrapResult) -> BootstrapResult:
        """These replicates and those of other parts of the run, made with other values of ``first=``.

        Parameters
        ----------
        *others : BootstrapResult
            Of the same fit, by the same kind of bootstrap.

        Returns
        -------
        BootstrapResult
            In the order given.

        Raises
        ------
        LMMError
            For parts of another fit, kind or statistic.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> parts = [fit.bootstrap(50, seed=1, first=first) for first in (0, 50)]
        >>> len(parts[0].join(parts[1]))
        100
        """
        parts = (self, *others)
        for place, part in enumerate(others, start=1):
            if not isinstance(part, BootstrapResult):
                raise LMMError(f"join(): argument {place} is a {type(part).__name__}, not a BootstrapResult")
            same = part.kind == self.kind and part.names == self.names
            if not (same and np.array_equal(part.estimate, self.estimate, equal_nan=True)):
                raise LMMError(f"join(): argument {place} belongs to another fit, kind of bootstrap or statistic")
        errors = [part.replicate_std_error for part in parts]
        return replace(
            self,
            replicates=np.concatenate([part.replicates for part in parts]),
            replicate_std_error=None if self.replicate_std_error is None else np.concatenate(cast("Any", errors)),
            singular=np.concatenate([part.singular for part in parts]),
            converged=np.concatenate([part.converged for part in parts]),
        )

    def to_frame(self) -> Any:
        """The replicates, one column per statistic, in the library of the model's data (or a dict of arrays)."""
        return native_frame(self.library or "dict", {name: self.replicates[:, j] for j, name in enumerate(self.names)})

    def __len__(self) -> int:
        return len(self.replicates)

    def _shown(self) -> Iterator[str | Cells]:
        yield (
            f"{self.kind.capitalize()} bootstrap: {len(self):,} replicates, {100.0 * self.singular_fraction:.1f} % "
            f"singular, {int((~self.converged).sum())} not certified"
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # correlations that no replicate has are NaN
            error, bias = self.std_error, self.bias
            bounds = limits(self._sample(range(len(self.names))), 0.95, "auto").bounds
        columns = [estimate_cells(values.tolist(), error.tolist(), 3) for values in (self.estimate, bias, *bounds.T)]
        cells = zip(self.names, columns[0], aligned_cells([f"{e:.3g}" for e in error]), *columns[1:], strict=True)
        yield Cells(["", "Estimate", "SE", "Bias", "2.5 %", "97.5 %"], first_lines([list(row) for row in cells], 50))
