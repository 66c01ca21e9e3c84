"""Linear mixed models: exact, certified and fast.

>>> import fastlmm_core as flc
>>> data = flc.datasets.load("sleepstudy")
>>> result = flc.lmm("Reaction ~ Days + (Days | Subject)", data).fit()
>>> round(result.criterion, 4)
1743.6283
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import LMMError
from .model import LinearMixedModel, lmm, load, mmrm

if TYPE_CHECKING:
    from . import datasets, plots
    from .bridges.marginaleffects import marginaleffects_model
    from .bridges.regressor import MixedLMRegressor
    from .bridges.statsmodels import from_statsmodels
    from .design.terms import RandomTerm
    from .each import fit_by, fit_each
    from .formula.group_means import between, group_mean, within
    from .formula.residual_arrays import Residual
    from .formula.variance_arrays import Variance
    from .inference.imputation.pool import pool
    from .inference.likelihood_ratio.compare import compare
    from .inference.likelihood_ratio.random_effects import random_effect_test
    from .planning.assumed import assume
    from .planning.curves import power_curve
    from .planning.power import power
    from .report.model_table import table
    from .result import LMMResult
    from .simulation.dropout import Dropout
    from .streams.cross_products import CrossProducts, merge
    from .streams.plan import Plan
    from .streams.planned import plan
    from .streams.source import Scan, scan

__version__ = "0.1.0"
__all__ = [
    "CrossProducts",
    "Dropout",
    "LMMError",
    "LMMResult",
    "LinearMixedModel",
    "MixedLMRegressor",
    "Plan",
    "RandomTerm",
    "Residual",
    "Scan",
    "Variance",
    "__version__",
    "assume",
    "between",
    "compare",
    "datasets",
    "fit_by",
    "fit_each",
    "from_statsmodels",
    "group_mean",
    "lmm",
    "load",
    "marginaleffects_model",
    "merge",
    "mmrm",
    "plan",
    "plots",
    "pool",
    "power",
    "power_curve",
    "random_effect_test",
    "scan",
    "table",
    "within",
]

_LAZY = {
    "CrossProducts": ".streams.cross_products",
    "Dropout": ".simulation.dropout",
    "LMMResult": ".result",
    "MixedLMRegressor": ".bridges.regressor",
    "Plan": ".streams.plan",
    "RandomTerm": ".design.terms",
    "Residual": ".formula.residual_arrays",
    "Variance": ".formula.variance_arrays",
    "Scan": ".streams.source",
    "assume": ".planning.assumed",
    "between": ".formula.group_means",
    "compare": ".inference.likelihood_ratio.compare",
    "datasets": ".datasets",
    "fit_by": ".each",
    "fit_each": ".each",
    "from_statsmodels": ".bridges.statsmodels",
    "group_mean": ".formula.group_means",
    "marginaleffects_model": ".bridges.marginaleffects",
    "merge": ".streams.cross_products",
    "plan": ".streams.planned",
    "plots": ".plots",
    "pool": ".inference.imputation.pool",
    "power": ".planning.power",
    "power_curve": ".planning.curves",
    "random_effect_test": ".inference.likelihood_ratio.random_effects",
    "scan": ".streams.source",
    "table": ".report.model_table",
    "within": ".formula.group_means",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        from .support.hints import attribute

        found = None if name.startswith("_") else attribute(name)
        said = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(f"{said}: {found}" if found else said)
    module = import_module(_LAZY[name], __name__)
    return module if name in ("datasets", "plots") else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
