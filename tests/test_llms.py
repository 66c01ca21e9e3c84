"""The page for assistants: its examples run, and the names that it mentions exist."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

import fastlmm_core as flc

DOCS = Path(__file__).parent.parent / "docs"
if not DOCS.exists():
    pytest.skip("the tests stand without the rest of the tree", allow_module_level=True)
TEXT = (DOCS / "llms.txt").read_text(encoding="utf-8")

INHERITED = {
    "again", "beta", "blup_covariances", "blups", "cov", "covariance", "effect_names", "engine", "fitted_mean",
    "marginal_rest", "nu", "once", "phi", "population_mean", "relative_covariance", "relative_factor",
    "require_estimates", "rest", "structured_engine",
}  # fmt: skip
"""What results have for other modules: arrays without labels, and how they are kept."""


def test_the_examples_run():
    test = doctest.DocTestParser().get_doctest(TEXT, {}, "llms.txt", str(DOCS / "llms.txt"), 0)
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.REPORT_NDIFF)
    runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)
    assert runner.tries > 20


def test_names_exist():
    assert TEXT.startswith("# fastlmm_core\n\n> ") and len(TEXT) < 10_000
    for name in set(re.findall(r"\bflc\.([a-z_.]+[a-z])", TEXT, re.IGNORECASE)):
        found = flc
        for part in name.split("."):
            found = getattr(found, part)
    for name in set(re.findall(r"\bresult\.([a-z_]\w*)", TEXT)) - {"model"}:
        assert hasattr(flc.LMMResult, name) or name in flc.LMMResult.__dataclass_fields__, name


def test_the_reference_lists_what_results_have():
    """Each public attribute and method once, in the group of what one wants of it."""
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"~LMMResult\.(\w+)`", page)
    assert len(listed) == len(set(listed))
    assert set(listed) == {name for name in dir(flc.LMMResult) if not name.startswith("_")} - INHERITED
