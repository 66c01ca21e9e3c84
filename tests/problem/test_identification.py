"""What the data tell apart: ranks of dense derivatives of V, and models that counting would refuse."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.optimize

import fastlmm_core as flc
from fastlmm_core.covariance.parameters import Block, CovarianceStructure
from fastlmm_core.problem.identification import GroupedColumns, crossed_levels, gram_of_derivatives, shared_levels


def derivatives(Z, codes, structure):
    """I and the derivative of V in each free element of G, n x n."""
    n = len(codes[0])
    out = [np.eye(n)]
    owner = np.repeat(np.arange(len(Z)), [z.shape[1] for z in Z])
    wide = np.column_stack(Z)
    for i, j in zip(*structure.positions, strict=True):
        same = codes[owner[i]][:, None] == codes[owner[i]]
        product = np.outer(wide[:, i], wide[:, j])
        out.append(same * (product if i == j else product + product.T))
    return out


def example(rng, sizes, widths, n, structure):
    codes = [np.concatenate([np.arange(m), rng.integers(0, m, n - m)]) for m in sizes]
    Z = [rng.normal(size=(n, q)) for q in widths]
    X = np.linalg.qr(rng.normal(size=(n, 3)))[0]
    starts = np.cumsum([0, *widths])
    kinds = structure * len(widths)
    blocks = tuple(Block(a, b, s) for a, b, s in zip(starts, starts[1:], kinds, strict=False))
    factors = [
        GroupedColumns(z, c, m, f"g{i}", tuple("abcd")[: z.shape[1]])
        for i, (z, c, m) in enumerate(zip(Z, codes, sizes, strict=True))
    ]
    return factors, X, CovarianceStructure(blocks)


@pytest.mark.parametrize(("sizes", "widths"), [((7,), (3,)), ((9, 4), (2, 3)), ((8, 5, 3), (1, 2, 1))])
@pytest.mark.parametrize("structure", [("full",), ("diagonal", "full", "diagonal")])
@pytest.mark.parametrize("with_x", [True, False])
def test_gram_matrix_of_the_derivatives(rng, sizes, widths, structure, with_x):
    factors, X, structure = example(rng, sizes, widths, 30, structure)
    X = X if with_x else X[:, :0]
    gram, size = gram_of_derivatives(shared_levels(factors), [crossed_levels(f, X) for f in factors], structure, 30)
    Q = np.eye(30) - X @ X.T
    dense = derivatives([f.Z for f in factors], [f.codes for f in factors], structure)
    expected = [[np.trace(Q @ a @ Q @ b) for b in dense] for a in dense]
    np.testing.assert_allclose(gram, expected, rtol=0, atol=1e-11 * np.max(expected))
    np.testing.assert_allclose(size, [np.linalg.norm(a) for a in dense], rtol=1e-12)


def identified(y, X, terms, weights=None):
    """Rank of Q D_k Q for a model from arrays, by singular values."""
    root = np.ones(len(y)) if weights is None else np.sqrt(weights)
    Z = [root[:, None] * t.Z for t in terms]
    codes = [np.unique(t.groups, return_inverse=True)[1] for t in terms]
    starts = np.cumsum([0, *(z.shape[1] for z in Z)])
    structure = CovarianceStructure(
        tuple(Block(a, b, t.structure) for a, b, t in zip(starts, starts[1:], terms, strict=False))
    )
    basis = np.linalg.qr(root[:, None] * X)[0]
    Q = np.eye(len(y)) - basis @ basis.T
    dense = derivatives(Z, codes, structure)
    columns = np.array([(Q @ d @ Q).ravel() / max(np.linalg.norm(d), 1e-300) for d in dense])
    return np.linalg.svd(columns, compute_uv=False)[-1] > 1e-6


def small_model(rng):
    """Few rows for many random effects, with columns that are often dependent or the same within groups."""
    n = int(rng.integers(8, 40))
    terms = []
    shared = [np.sort(rng.integers(0, int(rng.integers(2, n)), n)) for _ in range(2)]
    if rng.random() < 0.4:
        shared[0] = np.arange(n)
    pool = [np.ones(n), rng.integers(0, 2, n) + 0.0, rng.integers(0, 3, n) - 1.0, rng.normal(size=n)]
    pool.append(1.0 - pool[1])
    pool.append(np.where(shared[1] % 2 == 0, 1.0, -1.0))
    for _ in range(int(rng.integers(1, 4))):
        which = int(rng.integers(0, 2))
        q = int(rng.integers(1, 4))
        Z = np.column_stack([pool[int(i)] for i in rng.choice(len(pool), q, replace=False)])
        terms.append(flc.RandomTerm(Z, shared[which], f"g{which}", str(rng.choice(["full", "diagonal"]))))
    X = np.column_stack([np.ones(n), rng.normal(size=(n, int(rng.integers(0, 3))))])
    if rng.random() < 0.3:
        X = np.column_stack([X, shared[1] % 2 == 0])
    return rng.normal(size=n), X, terms, rng.uniform(0.5, 2.0, n) if rng.random() < 0.3 else None


SENSIBLE = ("cannot be told", " in common", "explained by", "is zero or")


@pytest.mark.parametrize("seed", range(60))
def test_refused_if_and_only_if_not_identified(seed):
    y, X, terms, weights = small_model(np.random.default_rng(seed))
    terms = sorted(terms, key=lambda t: t.name)
    known = identified(y, X, terms, weights)
    try:
        flc.LinearMixedModel(y, X, terms=terms, weights=weights)
        message = None
    except flc.LMMError as error:
        message = str(error)
    assert (message is None) == bool(known), message
    assert message is None or any(part in message for part in SENSIBLE), message


def orthodont():
    data = pd.DataFrame(flc.datasets.load("orthodont"))
    male = (data["Sex"] == "Male").astype(float)
    return data.assign(nsex=male, nsexage=male * data["age"], obs=np.arange(len(data)), early=data["age"] < 11)


@pytest.mark.parametrize(
    ("formula", "criterion"),
    [
        # lme4's manual, ?lmer
        ("distance ~ age + (age | Subject) + (0 + nsex | Subject) + (0 + nsexage | Subject)", 442.6367),
        # a residual variance for each sex
        ("distance ~ age + (age | Subject) + (0 + nsex | obs)", 421.6466),
    ],
)
def test_as_many_random_effects_as_observations(formula, criterion):
    result = flc.lmm(formula, orthodont()).fit()
    assert result.converged
    assert result.criterion == pytest.approx(criterion, abs=5e-5)


def test_variances_of_two_parts_of_each_group():
    data = orthodont().assign(a=lambda d: d.early.astype(float), b=lambda d: 1.0 - d.early)
    assert flc.lmm("distance ~ age + (1 | Subject) + (0 + a | Subject) + (0 + b | Subject)", data).fit().converged


def test_residual_variances_that_depend_on_a_column_against_dense_matrices():
    rng = np.random.default_rng(2)
    n = 80
    x, X = rng.uniform(0.0, 2.0, n), np.column_stack([np.ones(n), rng.normal(size=n)])
    y = X @ [1.0, 2.0] + np.sqrt(0.5 + x**2) * rng.normal(size=n)
    result = flc.LinearMixedModel(y, X, x[:, None], np.arange(n)).fit()

    def value(ratio):
        v = 1.0 + ratio**2 * x**2
        gram = X.T @ (X / v[:, None])
        rest = y - X @ np.linalg.solve(gram, X.T @ (y / v))
        r2 = rest @ (rest / v)
        return np.log(v).sum() + np.linalg.slogdet(gram)[1] + (n - 2) * (1 + np.log(2 * np.pi * r2 / (n - 2)))

    found = scipy.optimize.minimize_scalar(value, bounds=(0.0, 20.0), method="bounded", options={"xatol": 1e-10})
    assert result.criterion == pytest.approx(found.fun, abs=1e-8)
    assert result.theta[0] == pytest.approx(found.x, rel=1e-4)


MESSAGES = {
    "distance ~ age + (1 | obs)": r"every level of 'obs' has one observation: the variance of 'Intercept' in "
    r"\(1 \| obs\).*use ordinary regression",
    "distance ~ age + (age | obs)": r"'obs' has one observation: .*leave 'Intercept' out, or take a coarser factor",
    "distance ~ age + (0 + Sex | obs)": r"the covariance of 'Sex\[Female\]' with 'Sex\[Male\]' in .* cannot be told: .*"
    r"no pair of observations depends on it; make these random effects independent",
    "distance ~ age + (0 + C(age) | Subject)": r"the residual variance and the variances of 'C\(age\)\[8\]', .* in "
    r"\(0 \+ .*\| Subject\) cannot be told apart: .*use fewer random effects for each level of 'Subject'",
    "distance ~ age + (1 | Subject) + (0 + C(age) || Subject)": r"the residual variance and the variances of .*",
}


@pytest.mark.parametrize("formula", list(MESSAGES))
def test_messages_name_parameters_terms_and_remedies(formula):
    with pytest.raises(flc.LMMError, match=MESSAGES[formula]):
        flc.lmm(formula, orthodont())


def test_weights_identify_what_equal_variances_do_not():
    # known precisions up to a factor: a variance between studies is told from it
    rng = np.random.default_rng(0)
    study, precision = np.arange(40), 10.0 ** rng.uniform(-2.0, 2.0, 40)
    y = np.sqrt(0.5 + 1.0 / precision) * rng.normal(size=40)
    with pytest.raises(flc.LMMError, match="one observation"):
        flc.LinearMixedModel(y, None, None, study, weights=np.full(40, 3.0))
    assert flc.LinearMixedModel(y, None, None, study, weights=precision).fit().converged


def test_a_million_rows_are_decided_from_some():
    """Two rows a group and two random effects: no group tells all parameters, a few dozen of them do."""
    n = 200_000
    rng = np.random.default_rng(0)
    Z = np.column_stack([np.ones(n), rng.uniform(-1.0, 1.0, n)])
    y = rng.normal(size=n)
    groups = np.repeat(np.arange(n // 2), 2)
    assert flc.LinearMixedModel(y, Z[:, :1], Z, groups).problem.saturated
    Z[:, 1] = np.tile([0.0, 1.0], n // 2)
    with pytest.raises(flc.LMMError, match="cannot be told apart"):
        flc.LinearMixedModel(y, Z[:, :1], Z, groups)


@pytest.mark.parametrize("rows", [400, 4000])
def test_nested_and_crossed_factors_of_many_rows(rows):
    rng = np.random.default_rng(0)
    fine = np.repeat(np.arange(rows // 4), 4)
    for coarse in (fine // 10, rng.permutation(rows) % 10):
        x = rng.normal(size=rows)
        inner = (np.arange(rows) % 4 < 2).astype(float)
        terms = [flc.RandomTerm(None, coarse, "c"), flc.RandomTerm(None, fine, "f")]
        dependent = [flc.RandomTerm(z[:, None], fine, "f") for z in (inner, 1.0 - inner)]
        product = [flc.RandomTerm(None, 2 * fine + inner.astype(int), "half")]
        flc.LinearMixedModel(x, None, terms=[*terms, *dependent])
        with pytest.raises(flc.LMMError, match=r"the variance of .* cannot be told apart.*leave one of these"):
            flc.LinearMixedModel(x, None, terms=[terms[0], *dependent, *product])


@pytest.mark.parametrize("m", [6, 40])
def test_fixed_effects_that_take_all_within_groups_of_two(rng, m):
    """What is left are the groups' means, whose variance is one number: no few groups by themselves can tell."""
    groups, sign = np.repeat(np.arange(m), 2), np.tile([1.0, -1.0], m)
    X = np.column_stack([np.ones(2 * m), sign[:, None] * (groups[:, None] == np.arange(m))])
    with pytest.raises(flc.LMMError, match="cannot be told apart"):
        flc.LinearMixedModel(rng.normal(size=2 * m), X, None, groups)
    # one difference is left to the residuals
    assert flc.LinearMixedModel(rng.normal(size=2 * m), X[:, :-1], None, groups).problem.rank == m
