"""The outcome of a test of a linear hypothesis."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..support.arguments import checked
from ..support.display import Cells, Shown
from ..support.text_tables import p_value_cell
from ..support.types import Array
from ..tables.columns import native_frame

__all__ = ["METHODS", "WaldTest", "method"]


METHODS = {
    "satterthwaite": "Satterthwaite's degrees of freedom",
    "kenward-roger": "Kenward and Roger's method",
    "kenward-roger-linear": "Kenward and Roger's method without second derivatives",
    "between-within": "between-within degrees of freedom",
    "residual": "residual degrees of freedom",
    "normal": "known variances",
}


def method(ddf: str, vcov: str = "model", clusters: str = "", imputations: int = 0) -> str:
    """What a test is by, in words."""
    said = METHODS[ddf] if vcov == "model" or ddf != "normal" else "no correction for few clusters"
    if vcov != "model":
        said = f"robust covariance {vcov} over {clusters}, {said}"
    return f"Rubin's rules over {imputations} imputations; complete data: {said}" if imputations else said


@checked
@dataclass(frozen=True, repr=False)
class WaldTest(Shown):
    """Test of L beta = rhs.

    Attributes
    ----------
    estimate, std_error : (m,) arrays
        L beta and its standard error, row by row.
    row_statistic, row_df, row_pvalues : (m,) arrays
        t (or z, with infinite df) test of each row.
    statistic : float
        Of all rows together: t or z for one row, otherwise F, or chi-square for ddf="normal".
    df_num, df_denom : int, float
        Number of independent rows; denominator degrees of freedom (infinite for ddf="normal").
    pvalue : float
        Two-sided, of all rows together.
    L : (m, p) array
    rhs : (m,) array
    names : tuple of str
        What each row says.
    ddf : str
    joint_ddf : str
        What the joint test is by: as `ddf`, but "satterthwaite" where Kenward and Roger's method has none.
    left_out : tuple of str
        Variance parameters at the boundary that were taken for known.
    vcov : str
        "model", or the kind of the robust covariance.
    clusters : str
        How many clusters a robust covariance has, and what they are.
    imputations : int
        Number of imputed data sets over which the test was pooled, 0 for the test of one fit.
    """

    estimate: Array
    std_error: Array
    row_statistic: Array
    row_df: Array
    row_pvalues: Array
    statistic: float
    df_num: int
    df_denom: float
    pvalue: float
    L: Array
    rhs: Array
    names: tuple[str, ...]
    ddf: str
    joint_ddf: str = ""
    left_out: tuple[str, ...] = ()
    vcov: str = "model"
    clusters: str = ""
    imputations: int = 0
    _library: str = "dict"

    @property
    def library(self) -> str:
        """Whose frames `to_frame` gives: "pandas", "polars", "pyarrow" or "dict"."""
        return self._library

    @property
    def distribution(self) -> str:
        """What `statistic` is: "t", "z", "F" or "chi2"."""
        # over imputations the variance between them is estimated, even where that within them is taken for known
        known = self.ddf == "normal" and not self.imputations
        if len(self.names) == 1:
            return "z" if known else "t"
        return "chi2" if known else "F"

    def to_frame(self) -> Any:
        """One row per row of L: hypothesis, estimate, rhs, std_error, df, statistic, p_value.

        Returns
        -------
        frame in the library of the model's data, or dict of arrays
        """
        columns = {
            "hypothesis": list(self.names),
            "estimate": self.estimate.copy(),
            "rhs": self.rhs.copy(),
            "std_error": self.std_error.copy(),
            "df": self.row_df.copy(),
            "statistic": self.row_statistic.copy(),
            "p_value": self.row_pvalues.copy(),
        }
        return native_frame(self._library, columns)

    def _shown(self) -> Iterator[str | Cells]:
        known = self.distribution in ("z", "chi2")
        single = "z" if known else "t"
        header = ["Hypothesis", "Estimate", "SE", *(["df"] if single == "t" else []), single, "p"]
        rows = []
        for i, name in enumerate(self.names):
            freedom = [f"{self.row_df[i]:.2f}"] if single == "t" else []
            rows.append([
                f"{name} = {self.rhs[i]:g}", f"{self.estimate[i]:.6g}", f"{self.std_error[i]:.4g}", *freedom,
                f"{self.row_statistic[i]:.3f}", p_value_cell(self.row_pvalues[i]),
            ])  # fmt: skip
        yield f"Wald test, {method(self.ddf, self.vcov, self.clusters, self.imputations)}"
        yield Cells(header, rows)
        if len(self.names) > 1:
            freedom_of = f"{self.df_num}" if known else f"{self.df_num}, {self.df_denom:.2f}"
            kind = self.distribution
            shown = p_value_cell(self.pvalue)
            yield f"Jointly: {kind}({freedom_of}) = {self.statistic:.4g}, p {shown if '<' in shown else '= ' + shown}"
        if self.imputations and len(self.names) > 1:
            yield "Jointly by the F of Li, Raghunathan and Rubin."
        elif self.vcov != "model" and len(self.names) > 1:
            if np.isnan(self.statistic):
                yield f"There is no joint test: {self.clusters} are too few for {self.df_num} rows."
            elif self.ddf == "satterthwaite":
                yield "Jointly by Hotelling's T2 with the degrees of freedom of Pustejovsky and Tipton (HTZ)."
        if self.joint_ddf not in ("", self.ddf):
            yield f"The joint test is by {METHODS[self.joint_ddf]}: Kenward and Roger's method has none here."
        if self.left_out:
            yield f"Taken for known, being at the boundary: {'; '.join(self.left_out)}."
