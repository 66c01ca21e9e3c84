"""Linear hypotheses from text, names, mappings and arrays."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc
from fastlmm_core.inference.hypotheses import parse_hypothesis

NAMES = [
    "Intercept",
    "a",
    "b",
    "Days",
    "recipe[T.B]",
    "recipe[T.C]",
    "temperature",
    "recipe[T.B]:temperature",
    "C(recipe, Treatment('A'))[T.B]",
    "np.log(x + 1)",
    "poly(x, 2)[1]",
    "a-b",
]


def of(*pairs):
    out = np.zeros(len(NAMES))
    for name, value in pairs:
        out[NAMES.index(name)] += value
    return out


@pytest.mark.parametrize(
    ("text", "rows", "rhs"),
    [
        ("Days", [of(("Days", 1))], [0]),
        ("Days = 0", [of(("Days", 1))], [0]),
        ("Days=2.5", [of(("Days", 1))], [2.5]),
        ("recipe[T.B] - recipe[T.C] = 0", [of(("recipe[T.B]", 1), ("recipe[T.C]", -1))], [0]),
        ("2*a + b = 3", [of(("a", 2), ("b", 1))], [3]),
        ("a*2 + b/4 = 1e-3", [of(("a", 2), ("b", 0.25))], [1e-3]),
        ("a = b = 0", [of(("a", 1)), of(("b", 1))], [0, 0]),
        ("a = b", [of(("a", 1), ("b", -1))], [0]),
        ("a = b = Days", [of(("a", 1), ("Days", -1)), of(("b", 1), ("Days", -1))], [0, 0]),
        ("a, b = 1, Days", [of(("a", 1)), of(("b", 1)), of(("Days", 1))], [0, 1, 0]),
        ("a + 1 = b - 2", [of(("a", 1), ("b", -1))], [-3]),
        ("-(a - b) / 2 = -1", [of(("a", -0.5), ("b", 0.5))], [-1]),
        ("3*(a + 2*b) - -a", [of(("a", 4), ("b", 6))], [0]),
        ("1 = a", [of(("a", -1))], [-1]),
        # the longest name wins, and what looks like an operator may be part of a name
        ("recipe[T.B]:temperature", [of(("recipe[T.B]:temperature", 1))], [0]),
        ("recipe[T.B] - temperature", [of(("recipe[T.B]", 1), ("temperature", -1))], [0]),
        ("C(recipe, Treatment('A'))[T.B] = 2", [of(("C(recipe, Treatment('A'))[T.B]", 1))], [2]),
        ("2 * np.log(x + 1) - poly(x, 2)[1]", [of(("np.log(x + 1)", 2), ("poly(x, 2)[1]", -1))], [0]),
        ("a-b", [of(("a-b", 1))], [0]),
        ("a - b", [of(("a", 1), ("b", -1))], [0]),
        ("`a`-b", [of(("a", 1), ("b", -1))], [0]),
        ("`a-b` + `recipe[T.B]` = .5", [of(("a-b", 1), ("recipe[T.B]", 1))], [0.5]),
    ],
)
def test_text(text, rows, rhs):
    found = parse_hypothesis(text, NAMES)
    np.testing.assert_array_equal(found.L, rows)
    np.testing.assert_array_equal(found.rhs, rhs)
    assert len(found.names) == len(rows)


def test_a_label_says_the_row_and_can_be_read_again():
    found = parse_hypothesis("2*a - recipe[T.B]:temperature + b/3 = 1, Days", NAMES)
    assert found.names == ("2*a + 0.333333*b - recipe[T.B]:temperature", "Days")
    again = parse_hypothesis(list(found.names), NAMES)
    np.testing.assert_allclose(again.L, found.L, atol=1e-6)


def test_other_forms():
    expected = np.array([of(("a", 1)), of(("Days", 1))])
    for form in (["a", "Days"], ("a", "Days"), "a, Days", "a = Days = 0", expected, expected.tolist()):
        found = parse_hypothesis(form, NAMES)
        np.testing.assert_array_equal(found.L, expected)
        np.testing.assert_array_equal(found.rhs, [0, 0])
    found = parse_hypothesis({"a": 1, "Days - b": -2.5}, NAMES)
    np.testing.assert_array_equal(found.L, [of(("a", 1)), of(("Days", 1), ("b", -1))])
    np.testing.assert_array_equal(found.rhs, [1, -2.5])
    np.testing.assert_array_equal(parse_hypothesis(expected[0], NAMES).L, expected[:1])
    np.testing.assert_array_equal(parse_hypothesis(["a", "b"], NAMES, [1, 2]).rhs, [1, 2])
    np.testing.assert_array_equal(parse_hypothesis(expected, NAMES, 3).rhs, [3, 3])
    # a constant on the left stays where it belongs when rhs is given
    np.testing.assert_array_equal(parse_hypothesis("a + 1", NAMES, 3).rhs, [2])


@pytest.mark.parametrize(
    ("hypothesis", "rhs", "message"),
    [
        ("Dayz = 0", None, r"no coefficient 'Dayz'; did you mean 'Days'"),
        ("Days2", None, "no coefficient 'Days2'"),
        ("recipe[T.D]", None, r"no coefficient 'recipe\[T.D\]'; did you mean 'recipe\[T\.[BC]\]'"),
        ("Days:temperature", None, "no coefficient 'Days:temperature'"),
        ("`a b`", None, "no coefficient 'a b'"),
        ("`a", None, "backtick is not closed"),
        ("", None, "is empty"),
        ("   ", None, "is empty"),
        ("a b", None, "expected an operator"),
        ("2a", None, "expected an operator"),
        ("a +", None, "ends where"),
        ("a = ", None, "ends where"),
        ("(a + b", None, "parenthesis is not closed"),
        ("a * b", None, "multiplies coefficients"),
        ("1 / a", None, "divides by a coefficient"),
        ("a / 0", None, "divides by zero"),
        ("a == 0", None, "stands where"),
        ("a - a = 0", None, "involves no coefficient"),
        ("3 = 3", None, "involves no coefficient"),
        (np.zeros((1, len(NAMES))), None, "involves no coefficient"),
        (np.ones((2, 3)), None, "shape"),
        (np.full(len(NAMES), np.nan), None, "not finite"),
        (object(), None, "must be text"),
        ([], None, "shape"),
        ({}, None, "empty"),
        ("a = 1", 2.0, "given twice"),
        ({"a": 1}, 2.0, "given twice"),
        ("a", [1, 2], "shape"),
        ("a", "x", "must be a number"),
        ("a", np.inf, "not finite"),
    ],
)
def test_refusals(hypothesis, rhs, message):
    with pytest.raises(flc.LMMError, match=message):
        parse_hypothesis(hypothesis, NAMES, rhs)


@pytest.mark.parametrize(("name", "words"), [
    ("h", r"'h' is a factor with the coefficients h\[T.b\], h\[T.c\]; name these, or test it by anova"),
    ("x:h", r"'x:h' is a term with the coefficients h\[T.b\]:x, h\[T.c\]:x; name these"),
    ("x:z", "there is no coefficient 'x:z'"),
])  # fmt: skip
def test_names_of_terms(name, words):
    names = ["Intercept", "h[T.b]", "h[T.c]", "x", "z", "h[T.b]:x", "h[T.c]:x"]
    with pytest.raises(flc.LMMError, match=words):
        parse_hypothesis(name, names)
