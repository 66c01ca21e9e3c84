"""What the package maketables asks of a result: its table of coefficients, and numbers by name.

``maketables.ETable([fit1.summary(), fit2.summary()])`` makes tables for Word, LaTeX and HTML.  A fit has the same, but
maketables takes whatever has ``params``, ``bse`` and ``pvalues`` for a result of statsmodels, and then knows less.
"""

from __future__ import annotations

from typing import Any

__all__ = ["LABELS", "SHOWN", "MakeTables"]

LABELS = {
    "N": "Observations",
    "groups": "Groups",
    "icc": "ICC",
    "r2_marginal": "R² marginal",
    "r2_conditional": "R² conditional",
    "aic": "AIC",
    "bic": "BIC",
    "ll": "Log-likelihood",
    "se_type": "S.E. type",
}
"""Statistics that are known, and what they are called."""

SHOWN = ["N", "groups", "icc", "r2_marginal", "r2_conditional", "aic"]
"""Those that are shown unless told otherwise."""


class MakeTables:
    """The protocol, for a `Summary`."""

    @property
    def __maketables_coef_table__(self: Any) -> Any:
        import pandas as pd

        columns = {
            "b": "estimate", "se": "std_error", "t": "statistic", "p": "pvalue", "ci95l": "conf_low",
            "ci95u": "conf_high",
        }  # fmt: skip
        rows = self.coefficients
        frame = pd.DataFrame({key: [getattr(row, name) for row in rows] for key, name in columns.items()})
        frame.index = pd.Index([row.name for row in rows], name="Coefficient")
        return frame

    def __maketables_stat__(self: Any, key: str) -> Any:
        named = {"N": self.nobs, "r2_marginal": self.r2_marginal, "r2_conditional": self.r2_conditional,
                 "aic": self.aic, "bic": self.bic, "ll": self.llf}  # fmt: skip
        if key == "groups":
            return ", ".join(f"{count} ({name})" for name, count in self.groups)
        if key == "icc":
            alone = len(self.icc) == 1
            return self.icc[0][1] if alone else ", ".join(f"{share:.3f} ({name})" for name, share in self.icc)
        if key == "se_type":
            return "model" if self.vcov == "model" else f"{self.vcov}, {self.clusters}"
        return named.get(key)

    @property
    def __maketables_depvar__(self: Any) -> str:
        return str(self.response)

    @property
    def __maketables_stat_labels__(self) -> dict[str, str]:
        return LABELS

    @property
    def __maketables_default_stat_keys__(self) -> list[str]:
        return SHOWN
