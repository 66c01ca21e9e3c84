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
from .model import LinearMixedModel, lmm

if TYPE_CHECKING:
    from . import datasets, plots
    from .assumed import assume
    from .centering import between, group_mean, within
    from .comparison import compare
    from .power_analysis import power, power_curve
    from .random_effect_tests import random_effect_test
    from .results import LMMResult
    from .terms import RandomTerm

__version__ = "0.1.0"
__all__ = [
    "LMMError",
    "LMMResult",
    "LinearMixedModel",
    "RandomTerm",
    "__version__",
    "assume",
    "between",
    "compare",
    "datasets",
    "group_mean",
    "lmm",
    "plots",
    "power",
    "power_curve",
    "random_effect_test",
    "within",
]

_LAZY = {
    "LMMResult": ".results",
    "RandomTerm": ".terms",
    "assume": ".assumed",
    "between": ".centering",
    "compare": ".comparison",
    "datasets": ".datasets",
    "group_mean": ".centering",
    "plots": ".plots",
    "power": ".power_analysis",
    "power_curve": ".power_analysis",
    "random_effect_test": ".random_effect_tests",
    "within": ".centering",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_LAZY[name], __name__)
    return module if name in ("datasets", "plots") else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
