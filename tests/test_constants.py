"""Rules that kernels and the Python layer both apply have the same constants in both."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SAME = (
    ("lanes/elsewhere.pxi", "FEW_GROUPS", "engines.starts", "ENOUGH"),
    ("lanes/elsewhere.pxi", "SIX_GROUPS", "engines.one_factor.problem", "SIX"),
    ("lanes/elsewhere.pxi", "HALF", "engines.one_factor.problem", "HALF"),
    ("lanes/elsewhere.pxi", "DOMINATED", "engines.one_factor.problem", "DOMINATED"),
    ("lanes/elsewhere.pxi", "TELLING", "engines.one_factor.problem", "TELLING"),
    ("lanes/elsewhere.pxi", "UNALIKE", "engines.one_factor.problem", "UNALIKE"),
    ("lanes/elsewhere.pxi", "NEAR_BOUNDARY", "estimation.search", "NEAR_BOUNDARY"),
    ("lanes/closer.pxi", "EQUAL", "estimation.many.search", "EQUAL"),
    ("lanes/responses_with_covariates.pxi", "MOST_EFFECTS", "estimation.many.covariate_lanes", "MOST_EFFECTS"),
    ("lanes/screen.pxi", "SIDE_BY_SIDE", "estimation.many.search", "EIGHT"),
)
"""File and name of a kernel's constant, module and name of the Python layer's."""


@pytest.mark.parametrize(("file", "name", "module", "other"), SAME, ids=[name for _, name, *_ in SAME])
def test_a_rule_has_one_constant(file, name, module, other):
    text = (ROOT / "fastlmm_core" / file).read_text()
    values = re.findall(rf"^\s+{name} = ([\d.e-]+)|^cdef double {name} = ([\d.e-]+)", text, re.M)
    assert len(values) == 1, "defined once"
    assert float("".join(values[0])) == getattr(import_module(f"fastlmm_core.{module}"), other)
