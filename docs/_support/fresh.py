"""What a page finds in a kernel that others have used: what a kernel of its own would give it."""

from __future__ import annotations

import os
import sys
import warnings

import pages  # noqa: F401  settings of its own come before what is kept here
from IPython import get_ipython

FILTERS, PATH = list(warnings.filters), list(sys.path)


def begin(folder: str) -> None:
    """Drop what the page before left: its names, its folder, its search path and its filters of warnings."""
    get_ipython().reset(new_session=True)
    warnings.filters[:] = FILTERS
    warnings._filters_mutated()
    sys.path[:] = PATH
    os.chdir(folder)
