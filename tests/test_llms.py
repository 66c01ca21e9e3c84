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
