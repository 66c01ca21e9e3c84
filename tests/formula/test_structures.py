"""Structures of random effects in formulas: `cs(x | g, hom=True)`."""

from __future__ import annotations

import pytest

from fastlmm_core import LMMError
from fastlmm_core.covariance.effects.catalogue import of_effects
from fastlmm_core.covariance.effects.names import EFFECTS
from fastlmm_core.formula.syntax import parse


@pytest.mark.parametrize(
    ("formula", "fixed", "bars"),
    [
        ("y ~ x + us(x | g)", "x", [("x", "g", "full")]),
        ("y ~ x + diag(x | g)", "x", [("x", "g", "diagonal")]),
        # lme4 2: cs and diag have a variance for each effect, ar1 one, unless hom= says otherwise
        ("y ~ diag(x | g, hom = TRUE)", "1", [("x", "g", "id")]),
        ("y ~ cs(0 + f | g) + (1 | h)", "1", [("0 + f", "g", "csh"), ("1", "h", "full")]),
        ("y ~ cs(0 + f | g, hom=True)", "1", [("0 + f", "g", "cs")]),
        ("y ~ ar1(0 + f | g)", "1", [("0 + f", "g", "ar1")]),
        ("y ~ ar1(0 + f | g, hom=FALSE)", "1", [("0 + f", "g", "ar1h")]),
        ("y ~ x + fa0(0 + f | a:b, rank=2)", "x", [("0 + f", "a:b", "fa0(2)")]),
        ("y ~ fa0(x | g)", "1", [("x", "g", "fa0(1)")]),
        ("y ~ cs(1 | a/b)", "1", [("1", "a", "csh"), ("1", "a:b", "csh")]),
        ("y ~ x + toep(0 + C(f, Sum) | g) + z", "x  + z", [("0 + C(f, Sum)", "g", "toep")]),
        # without a bar they are functions, such as cubic splines
        ("y ~ cs(x, df=3) + (1 | g)", "cs(x, df=3)", [("1", "g", "full")]),
    ],
)
def test_terms(formula, fixed, bars):
    parsed = parse(formula)
    assert parsed.fixed.text == fixed
    assert [(bar.left.text, bar.name, bar.structure) for bar in parsed.bars] == bars


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("y ~ cs(x || g)", r"has '\|\|' within a structure"),
        ("y ~ cs(x | g, foo=1)", "has 'foo=1', which is no option of it"),
        ("y ~ cs(x | g, 3)", "has '3', which is no option of it"),
        ("y ~ cs(x | g, hom=maybe)", "has 'hom=maybe', which is no option of it"),
        ("y ~ fa0(x | g, rank=two)", "has 'rank=two', which is no option of it"),
        ("y ~ us(x | g, hom=True)", r"us\(\) takes no hom=; diag, cs, ar1 do"),
        ("y ~ cs(x | g, rank=2)", r"cs\(\) takes no rank; fa0 does"),
        ("y ~ fa0(x | g, rank=0)", "takes a rank from 1"),
        ("y ~ 2*cs(x | g)", "must stand by itself"),
    ],
)
def test_refusals(formula, message):
    with pytest.raises(LMMError, match=message):
        parse(formula)


def test_every_name_has_a_structure():
    for name in EFFECTS:
        assert of_effects(name, 3).q == 3
