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
    from . import datasets
    from .assumed import assume
    from .power_analysis import power, power_curve
    from .results import LMMResult

__version__ = "0.1.0"
__all__ = [
    "LMMError",
    "LMMResult",
    "LinearMixedModel",
    "__version__",
    "assume",
    "datasets",
    "lmm",
    "power",
    "power_curve",
]

_LAZY = {
    "LMMResult": ".results",
    "assume": ".assumed",
    "datasets": ".datasets",
    "power": ".power_analysis",
    "power_curve": ".power_analysis",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_LAZY[name], __name__)
    return module if name == "datasets" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
