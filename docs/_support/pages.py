"""What the pages of the site share: how numbers stand in the text, and how plots look.

A page begins with a hidden cell ``from pages import num, p``; a number in the text is an inline expression such as
``num(result.icc(), 2)``, evaluated when the page is built.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import matplotlib

__all__ = ["num", "p", "percent", "scientific"]

# no progress bars on the pages
os.environ["TQDM_DISABLE"] = "1"
warnings.filterwarnings("ignore", message="IProgress not found")

matplotlib.rcParams.update({"figure.dpi": 96, "savefig.dpi": 96, "font.size": 10.0, "figure.figsize": (6.4, 4.0)})

try:
    from IPython import get_ipython
    from matplotlib_inline.backend_inline import set_matplotlib_formats
except ImportError:
    get_ipython = None

if get_ipython is not None and get_ipython() is not None:
    set_matplotlib_formats("svg")
else:
    matplotlib.use("Agg")

try:
    import pandas as pd

    pd.set_option("display.width", 110, "display.max_columns", 30, "display.precision", 4)
except ImportError:
    pass


class _Text:
    """Something whose repr is the text as it is to stand in a sentence."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def num(value: Any, digits: int = 2) -> _Text:
    """A number with so many decimals and a proper minus sign."""
    shown = f"{float(value):,.{digits}f}"
    if float(shown.replace(",", "")) == 0.0:
        shown = shown.removeprefix("-")
    return _Text(shown.replace("-", "−"))


def percent(share: Any, digits: int = 0) -> _Text:
    """A share in per cent."""
    return _Text(f"{100.0 * float(share):.{digits}f} %")


def scientific(value: Any) -> _Text:
    """One digit and a power of ten."""
    return _Text(f"{float(value):.0e}")


def p(value: Any) -> _Text:
    """A p-value, with its sign of equality or less."""
    value = float(value)
    return _Text("p < 0.001" if value < 0.001 else f"p = {value:.3f}")
