"""Labels of any kind say who belongs together, and nothing else: every number equals that of text labels."""

from functools import cache

import numpy as np
import pytest

import fastlmm_core as flc
from fastlmm_core import LinearMixedModel, RandomTerm
from fastlmm_core.design.grouping import Codes, alike_divided, group_codes
from fastlmm_core.engines.choose import condition_factors
from fastlmm_core.engines.crossed.problem import Factor

M = 12
"""Levels of the factor whose labels are varied."""


def _objects(values):
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out


LABELS = {
    "gaps": np.arange(M) * 7,
    "negative": np.arange(M) * 5 - 31,
    "int8": (np.arange(M) * 20 - 110).astype(np.int8),
    "uint8": (np.arange(M) * 21).astype(np.uint8),
    "int16, big endian": (np.arange(M) * 3).astype(">i2"),
    "int32, at the ends": np.array([-(2**31), *range(M - 2), 2**31 - 1], dtype=np.int32),
    "int32, at its end": (2**31 - 1 - 2 * np.arange(M)[::-1]).astype(np.int32),
    "int64, beyond 2^31": 2**31 + 9 * np.arange(M),
    "int64, beyond 2^53": 2**53 + np.arange(M),
    "int64, at the ends": np.array([-(2**63), *range(M - 2), 2**63 - 1]),
    "int64, at its start": -(2**63) + 3 * np.arange(M),
    "int64, at its end": 2**63 - 1 - 3 * np.arange(M)[::-1],
    "uint64, beyond 2^63": np.uint64(2**63) + np.arange(M, dtype=np.uint64) * np.uint64(5),
    "uint64, both": np.array([0, *range(2**63 - 5, 2**63 + M - 6)], dtype=np.uint64),
    "float": np.arange(M) * 0.5 - 3.0,
    "object integers": _objects([3 * i - 4 for i in range(M)]),
    "object text": _objects([f"s{i:02d}" for i in range(M)]),
    "text": np.array([f"s{i:02d}" for i in range(M)]),
    "bytes": np.array([f"s{i:02d}".encode() for i in range(M)]),
    "dates": np.datetime64("2020-01-01") + 30 * np.arange(M),
}
"""In increasing order, so that the levels of all of them stand in the same order."""


def data(order="mixed", m=M):
    """Rows of m groups crossed with 5; every group occurs, in any order or sorted."""
    rng = np.random.default_rng(5)
    g = np.concatenate([np.arange(m), rng.integers(0, m, 108)])
    g = np.sort(g) if order == "sorted" else rng.permutation(g)
    h = rng.integers(0, 5, len(g))
    x = rng.standard_normal(len(g))
    X = np.column_stack([np.ones(len(g)), x])
    b = rng.standard_normal((m, 2)) * [1.0, 0.7]
    y = X @ [1.0, 0.5] + b[g, 0] + b[g, 1] * x + 0.8 * rng.standard_normal(5)[h] + 0.5 * rng.standard_normal(len(g))
    return g, h, x, X, y


MODELS = {
    "one factor": lambda g, h, x: [RandomTerm(np.column_stack([np.ones(len(x)), x]), g, "g")],
    "two terms": lambda g, h, x: [RandomTerm(None, g, "g"), RandomTerm(x, g, "g")],
    "second factor": lambda g, h, x: [RandomTerm(None, g, "g"), RandomTerm(None, h, "h")],
    "two terms and a second factor": lambda g, h, x: [
        RandomTerm(None, g, "g"), RandomTerm(x, g, "g"), RandomTerm(None, h, "h")
    ],
    "as the second factor": lambda g, h, x: [RandomTerm(None, h, "h"), RandomTerm(x, g, "g")],
}  # fmt: skip


def one(value, factor="g"):
    """What belongs to one factor, whether there are others or not."""
    return value[factor] if isinstance(value, dict) else value


def numbers(result, labels):
    """What depends on who belongs together, with the levels of g in order."""
    model = result.model
    batch = model.fit_many(np.vstack([model.endog, model.endog[::-1]]))
    several = len(model.factors) > 1
    rows = {"x": np.array([[1.0, 0.3]] * len(labels))}
    width = {f.grouping.name: f.stop - f.start for f in model.factors}
    groups = {"g": labels, "h": np.zeros(len(labels), dtype=int)}
    Z = {name: np.ones((len(labels), q)) for name, q in width.items()}
    if not several:
        groups, Z = groups["g"], Z["g"]
    new = {"X": rows["x"], "Z": Z, "groups": groups}
    return {
        "criterion": result.criterion,
        "fitted": result.fittedvalues,
        "effects": one(result.random_effects),
        "batch": one(batch.random_effects()),
        "predicted": result.predict(new, effects="all"),
    }


@cache
def numbers_of_text(name, order):
    g, h, x, X, y = data(order)
    text = np.array([f"level {i:02d}" for i in range(M)])
    return numbers(LinearMixedModel(y, X, terms=MODELS[name](text[g], h, x)).fit(), text)


@pytest.mark.parametrize("order", ["mixed", "sorted"])
@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("name", MODELS)
def test_labels_of_every_kind_give_the_same_fit(name, kind, order):
    g, h, x, X, y = data(order)
    labels = LABELS[kind]
    expected = numbers_of_text(name, order)
    model = LinearMixedModel(y, X, terms=MODELS[name](labels[g], h, x))
    result = model.fit()
    assert result.n_groups == {"g": M} | ({"h": 5} if len(model.factors) > 1 else {})
    grouping = model.factor("g").grouping
    assert grouping.m == M
    assert grouping.labels.tolist() == labels.tolist()
    np.testing.assert_array_equal(grouping.index, g)
    np.testing.assert_array_equal(grouping.locate(labels), np.arange(M))
    for what, value in numbers(result, labels).items():
        np.testing.assert_allclose(value, expected[what], rtol=1e-9, atol=1e-9, err_msg=what)


@pytest.mark.parametrize("kind", LABELS)
def test_groups_and_formulas_take_labels_of_every_kind(kind):
    g, _, x, X, y = data()
    labels = LABELS[kind]
    expected = LinearMixedModel(y, X, X, [f"level {i:02d}" for i in g]).fit()
    plain = LinearMixedModel(y, X, X, labels[g]).fit()
    found = [plain]
    if kind != "bytes":
        found.append(flc.lmm("y ~ x + (x | g)", {"y": y, "x": x, "g": labels[g]}).fit())
    for result in found:
        assert one(result.n_groups, "g" if result is not plain else "group") == M
        np.testing.assert_allclose(result.fittedvalues, expected.fittedvalues, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(result.criterion, expected.criterion, rtol=1e-12)


def test_labels_are_those_of_the_rows():
    """A boolean factor, and one whose levels are dense anyway."""
    g, _, x, X, y = data()
    half = g < 6
    terms = [RandomTerm(None, half, "half"), RandomTerm(None, g * 7, "g"), RandomTerm(x, g * 7, "g")]
    result = LinearMixedModel(y, X, terms=terms).fit()
    assert result.n_groups == {"g": M, "half": 2}
    assert result.model.factor("half").grouping.labels.tolist() == [False, True]


def test_terms_of_one_name_are_compared_by_label():
    g, _, x, X, y = data()
    for other in (g * 7, (g * 7).astype(np.int32), (g * 7).astype(float), _objects([7 * i for i in g.tolist()])):
        assert LinearMixedModel(y, X, terms=[RandomTerm(None, g * 7, "g"), RandomTerm(x, other, "g")]).fit().converged
    for other in (g * 7 + 1, g, [str(7 * i) for i in g]):
        with pytest.raises(flc.LMMError, match=r"terms\[1\] has the name 'g' of an earlier term but other groups"):
            LinearMixedModel(y, X, terms=[RandomTerm(None, g * 7, "g"), RandomTerm(x, other, "g")])


def test_what_was_read_is_not_written():
    """Fitting another response counts anew; the codes stay as they were, and are not to be changed."""
    g, _, _, X, y = data()
    read = group_codes(g * 7, "g")
    assert isinstance(read, Codes) and not hasattr(read, "labels") and not hasattr(read, "index")
    with pytest.raises(AttributeError):
        read.n_slots = M
    model = LinearMixedModel(y, X, X, g * 7)
    with pytest.raises(AttributeError):
        model.grouping.present = None
    other = model.refit(-y)
    assert other.model.grouping.codes is model.grouping.codes
    assert other.n_groups == model.fit().n_groups


@pytest.mark.parametrize("rows", [60, 3000])
@pytest.mark.parametrize("fault", ["gap", "beyond", "negative"])
def test_codes_that_are_not_dense_end_in_an_error(fault, rows):
    """The several-factor kernels write where codes point: whatever leads there with other codes is refused."""
    rng = np.random.default_rng(0)
    a, b = np.arange(rows) % 10, rng.integers(0, 4, rows)
    a = {"gap": np.where(a == 4, 5, a), "beyond": np.where(a == 4, 10, a), "negative": a - 1}[fault]
    ones = np.ones((rows, 1))
    y = rng.standard_normal(rows)
    structure = flc.LinearMixedModel(
        y, ones, terms=[RandomTerm(None, np.arange(rows) % 10, "a"), RandomTerm(None, b, "b")]
    ).structure
    with pytest.raises(flc.LMMError, match="internal error: the codes of the grouping factor 'a'"):
        condition_factors(y, ones, [Factor(ones, a, 10, "a"), Factor(ones, b, 4, "b")], None, None, structure)


def test_factors_that_divide_the_rows_alike(rng):
    index = rng.permutation(np.repeat(np.arange(9), 5))
    assert alike_divided(index, rng.permutation(9)[index], 9)
    other = index.copy()
    # two rows change places, so that all levels still occur, as often as before
    at = [np.flatnonzero(index == 0)[0], np.flatnonzero(index == 1)[0]]
    other[at] = other[at[::-1]]
    assert not alike_divided(index, other, 9)
    assert not alike_divided(np.array([0, 0, 1, 2]), np.array([0, 1, 2, 2]), 3)
