"""Many problems with designs of their own: every fit is the single fit of its rows, whatever stands beside it."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

import fastlmm_core as flc
import landscapes
import oracle
from fastlmm_core.engines.scaling import criterion_offset
from fastlmm_core.estimation.many import stack_fit
from fastlmm_core.kernels import minimize_newton

# Both searches end within 4e-9 of a standard error of theta; coefficients and their errors are flat there.
AGREE = 1e-8
# Variances and their functions are as far from the optimum as theta is: some 1e-8 of a standard error.
VARIANCES = 3e-7
# The criterion is flat at its optimum: what is left is the rounding of its sums, taken in another order.
CRITERION = 1e-10

FIELDS = ("params", "bse", "satterthwaite", "sigma2", "criterion", "theta", "status", "n_evaluations", "nobs", "rank")


def problems(rng, count, q, p=2, sizes=(6, 14), rows=(3, 8), tau=1.0, weights=False):
    """Stacked problems of different sizes with random slopes, all values drawn anew in each."""
    each, groups = [], []
    for k in range(count):
        m = rng.integers(*sizes)
        n_i = rng.integers(*rows, m)
        each.append(np.full(n_i.sum(), k))
        groups.append(np.repeat(rng.permutation(50)[:m], n_i))
    each, groups = np.concatenate(each), np.concatenate(groups)
    n = len(each)
    X = np.column_stack([np.ones(n), rng.standard_normal((n, p - 1)) * 10.0 + 100.0])
    Z = np.column_stack([np.ones(n), rng.standard_normal((n, q - 1))])
    b = tau * rng.standard_normal((count, 50, q))
    w = rng.uniform(0.3, 3.0, n) if weights else None
    noise = rng.standard_normal(n) / (1.0 if w is None else np.sqrt(w))
    y = X.sum(axis=1) + np.einsum("ij,ij->i", Z, b[each, groups]) + noise
    return y, X, Z, groups, each, w


def single(stacked, k, reml=True, structure="full", offset=None):
    """The ordinary fit of one problem."""
    y, X, Z, groups, each, w = stacked
    at = each == k
    return flc.LinearMixedModel(
        y[at], X[at], Z[at], groups[at], weights=None if w is None else w[at],
        offset=None if offset is None else offset[at], structure=structure,
    ).fit(reml)  # fmt: skip


def agrees(result, k, one):
    """Estimates of problem k are those of a single fit."""
    assert result.converged[k]
    assert one.converged
    assert result.criterion[k] == pytest.approx(one.criterion, abs=CRITERION * (1.0 + abs(one.criterion)))
    np.testing.assert_allclose(result.params[k], one.params, atol=AGREE * np.max(one.bse), rtol=0.0)
    np.testing.assert_allclose(result.bse[k], one.bse, rtol=VARIANCES)
    assert result.sigma2[k] == pytest.approx(one.sigma2, rel=VARIANCES)
    scale = np.sqrt(np.outer(np.diag(one.covariance), np.diag(one.covariance))) + one.sigma2
    np.testing.assert_allclose(result.covariance[k] / scale, one.covariance / scale, atol=VARIANCES)
    assert result.singular[k] == one.singular
    assert result.nobs[k] == one.nobs
    assert result.n_groups[k] == one.n_groups["group"]
    assert result.rank[k] == one.model.problem.rank


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize(("q", "structure"), [(1, "full"), (2, "full"), (2, "diagonal"), (3, "full")])
def test_each_fit_is_the_single_fit(rng, q, structure, reml):
    stacked = problems(rng, 21, q, sizes=(9, 20), weights=q == 2)
    result = flc.fit_each(*stacked[:5], weights=stacked[5], structure=structure, reml=reml)
    assert len(result) == 21
    for k in range(21):
        agrees(result, k, single(stacked, k, reml, structure))


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("p", [1, 2, 3, 4, 5])
def test_two_effects_beside_any_number_of_columns(rng, p, reml):
    # up to four columns the sweeps over groups are written out
    stacked = problems(rng, 12, 2, p=p, sizes=(9, 20))
    result = flc.fit_each(*stacked[:5], reml=reml)
    for k in range(12):
        agrees(result, k, single(stacked, k, reml))


@pytest.mark.parametrize("unit", [1.0, 1e-90, 1e60])
def test_weights_in_any_unit(rng, unit):
    # the product of all weights is no number of the machine; of sizes that four do and do not divide
    y, X, Z, groups, each, w = problems(rng, 8, 2, sizes=(9, 20), weights=True)
    result = flc.fit_each(y, X, Z, groups, each, weights=w * unit)
    one = flc.fit_each(y, X, Z, groups, each, weights=w)
    for k in range(8):
        # sigma^2 in another unit, the same criterion
        assert result.criterion[k] == pytest.approx(one.criterion[k], abs=1e-7)
        assert result.sigma2[k] == pytest.approx(unit * one.sigma2[k], rel=1e-7)
        if unit == 1.0:
            agrees(result, k, single((y, X, Z, groups, each, w), k))


def test_offset_and_one_column(rng):
    y, X, Z, groups, each, _ = problems(rng, 10, 1, p=1)
    offset = 3.0 * rng.standard_normal(len(y))
    result = flc.fit_each(y, None, None, groups, each, offset=offset)
    for k in range(10):
        agrees(result, k, single((y, X, Z, groups, each, None), k, offset=offset))


def test_z_is_x(rng):
    y, X, _, groups, each, _ = problems(rng, 12, 2)
    result = flc.fit_each(y, X, X, groups, each)
    for k in range(12):
        agrees(result, k, single((y, X, X, groups, each, None), k))


def test_against_the_dense_oracle(rng):
    # beta, sigma^2 and the criterion at the theta found, and the gradient there, from V itself
    y, X, Z, groups, each, w = problems(rng, 8, 2, weights=True)
    result = flc.fit_each(y, X, Z, groups, each, weights=w)
    for k in np.flatnonzero(~result.singular).tolist():
        at = each == k
        rows = (y[at], X[at], Z[at], groups[at])
        L = oracle.lambda_from_theta(result.theta[k], 2)
        np.testing.assert_allclose(
            result.params[k], oracle.beta(*rows, L @ L.T, weights=w[at]), rtol=1e-9, atol=1e-9 * result.bse[k].max()
        )
        assert result.sigma2[k] == pytest.approx(oracle.sigma2(*rows, L @ L.T, True, weights=w[at]), rel=1e-9)
        assert result.criterion[k] == pytest.approx(oracle.criterion(*rows, L @ L.T, True, weights=w[at]), abs=1e-8)
        cov = oracle.cov_params(*rows, L @ L.T, True, weights=w[at])
        np.testing.assert_allclose(result.bse[k], np.sqrt(np.diag(cov)), rtol=1e-8)
        gradient = oracle.gradient_theta(result.theta[k], *rows, True, weights=w[at])
        hessian = oracle.hessian_theta(result.theta[k], *rows, True, weights=w[at])
        assert gradient @ np.linalg.solve(hessian, gradient) < 1e-12


def test_nothing_depends_on_threads_or_neighbours(rng, monkeypatch):
    stacked = problems(rng, 70, 2, sizes=(6, 30), tau=0.4)
    y, X, Z, groups, each, _ = stacked
    monkeypatch.setattr(stack_fit, "PIECE", 16)
    first = flc.fit_each(y, X, Z, groups, each, n_jobs=1)
    again = flc.fit_each(y, X, Z, groups, each, n_jobs=2)
    # in another order, and by other names, with rows of problems between each other
    names = rng.permutation(70)
    mixed = np.argsort(rng.permutation(70)[each], kind="stable")
    other = flc.fit_each(y[mixed], X[mixed], Z[mixed], groups[mixed], names[each[mixed]], n_jobs=1)
    shuffled = np.argsort(np.arange(len(y)) % 7, kind="stable")
    back = np.argsort(each[shuffled], kind="stable")
    few = flc.fit_each(*(v[each < 3] for v in (y, X, Z, groups, each)), n_jobs=1)
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name), err_msg=name)
        np.testing.assert_array_equal(getattr(first, name), getattr(other, name)[names], err_msg=name)
        np.testing.assert_array_equal(getattr(first, name)[:3], getattr(few, name), err_msg=name)
    # rows of problems taken in turns: the order within a problem is what counts
    turns = flc.fit_each(*(v[shuffled] for v in (y, X, Z, groups, each)), n_jobs=1)
    own = flc.fit_each(*(v[shuffled][back] for v in (y, X, Z, groups, each)), n_jobs=1)
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(turns, name), getattr(own, name), err_msg=name)


@pytest.mark.parametrize(("count", "rows"), [(24, (60, 200)), (48, (40, 60)), (300, (2, 4))])
@pytest.mark.parametrize("order", ["sorted", "any"])
def test_threads_share_the_problems_and_change_no_bit(rng, count, rows, order, monkeypatch):
    stacked = problems(rng, count, 2, sizes=(12, 16), rows=rows, weights=True)
    if order == "any":
        at = rng.permutation(len(stacked[0]))
        stacked = [values[at] for values in stacked]
    *data, weights = stacked
    tasks = []
    original = stack_fit.in_threads

    def watched(run, given, jobs, report=None):
        given = list(given)
        tasks.append((len(given), jobs))
        original(run, iter(given), jobs, report)

    monkeypatch.setattr(stack_fit, "in_threads", watched)
    alone = flc.fit_each(*data, weights=weights, n_jobs=1)
    for jobs in (2, 3, 8):
        found = flc.fit_each(*data, weights=weights, n_jobs=jobs)
        # a few problems of many rows are work for all threads, too
        assert tasks[-1][0] >= tasks[-1][1] >= 2
        for name in (*FIELDS, "z_maps", "by_lanes", "n_groups"):
            np.testing.assert_array_equal(getattr(found, name), getattr(alone, name), err_msg=name)
        np.testing.assert_array_equal(found.test([[0.0, 1.0]]).pvalues, alone.test([[0.0, 1.0]]).pvalues)


@pytest.mark.parametrize("jobs", [1, 2])
def test_values_that_are_not_finite_are_named_whatever_finds_them(rng, jobs):
    y, X, Z, groups, each, weights = problems(rng, 20, 2)
    weights = np.ones(len(y)) if weights is None else weights
    given = {"y": y, "X": X, "Z": Z, "weights": weights}
    for (name, values), value in product(given.items(), (np.nan, np.inf)):
        for row, column in product((0, 1, len(y) - 1), range(values.shape[1] if values.ndim == 2 else 1)):
            place = (row, column) if values.ndim == 2 else row
            before, values[place] = values[place], value
            match = rf"{name} has 1 values that are not finite .* row {row}|positive .first other: nan at row {row}"
            with pytest.raises(flc.LMMError, match=match):
                flc.fit_each(y, X, Z, groups, each, weights=weights, n_jobs=jobs)
            values[place] = before


def test_columns_that_one_problem_lacks_are_dropped_there(rng):
    y, X, Z, groups, each, _ = problems(rng, 9, 1, p=4, sizes=(10, 16))
    X[each == 2, 2] = 0.0
    X[each == 4, 1] = 7.0
    X[each == 6, 3] = X[each == 6, 1] - 2.0 * X[each == 6, 2]
    stacked = (y, X, Z, groups, each, None)
    result = flc.fit_each(y, X, Z, groups, each)
    np.testing.assert_array_equal(result.rank, [4, 4, 3, 4, 3, 4, 3, 4, 4])
    for k in range(9):
        one = single(stacked, k)
        np.testing.assert_array_equal(np.isnan(result.params[k]), np.isnan(one.params))
        kept = ~np.isnan(one.params)
        np.testing.assert_allclose(result.params[k, kept], one.params[kept], atol=AGREE * np.nanmax(one.bse), rtol=0.0)
        np.testing.assert_allclose(result.bse[k, kept], one.bse[kept], rtol=VARIANCES)
        assert result.criterion[k] == pytest.approx(one.criterion, abs=1e-8)
    # the lanes do without columns that vary not at all; others are a single fit's
    np.testing.assert_array_equal(result.by_lanes == 1, np.arange(9) != 6)


def test_without_an_intercept(rng):
    y, X, Z, groups, each, _ = problems(rng, 6, 1, p=3)
    stacked = (y, np.ascontiguousarray(X[:, 1:] - 100.0), Z, groups, each, None)
    result = flc.fit_each(*stacked[:5])
    for k in range(6):
        agrees(result, k, single(stacked, k))


def test_what_cannot_be_fitted_says_why(rng):
    y, X, Z, groups, each, _ = problems(rng, 6, 1)
    y[each == 1] = 3.0
    groups[each == 2] = 0
    result = flc.fit_each(y, X, Z, groups, each)
    np.testing.assert_array_equal(result.invalid, [1, 2])
    assert "y is constant" in result.reasons[1]
    assert "one level" in result.reasons[2]
    assert np.isnan(result.params[[1, 2]]).all()
    assert np.isnan(result.covariance[[1, 2]]).all()
    with pytest.raises(flc.LMMError, match="problem 1 could not be fitted: y is constant"):
        result[1]
    agrees(result, 3, single((y, X, Z, groups, each, None), 3))


def test_few_groups_and_digits_that_sums_lose_are_left_to_single_fits(rng):
    # three groups do not show that all is identified; a variance between groups of 1e10 leaves sums without digits
    y, X, Z, groups, each, _ = problems(rng, 8, 1, sizes=(3, 4), rows=(8, 9))
    y[each == 5] += 1e6 * np.repeat(rng.standard_normal(3), 8)
    stacked = (y, X, Z, groups, each, None)
    result = flc.fit_each(y, X, Z, groups, each)
    assert not result.by_lanes.any()
    for k in range(8):
        one = single(stacked, k)
        assert result.criterion[k] == one.criterion
        np.testing.assert_array_equal(result.params[k], one.params)


def test_what_single_fits_have_found_is_kept_in_parts_put_together(rng):
    y, X, Z, groups, each, _ = problems(rng, 8, 1, sizes=(3, 4), rows=(8, 9))
    y[each == 4] = 3.0
    result = flc.fit_each(y, X, Z, groups, each)
    assert not result.by_lanes.any() and list(result.reasons) == [4]
    assert np.flatnonzero(result.singular).tolist() == [
        k for k in range(8) if k != 4 and single((y, X, Z, groups, each, None), k).singular
    ]
    assert result.singular.any()
    whole = type(result).concat([result[:3], result[3:]])
    assert whole.reasons == result.reasons
    for name in ("covariance", "params", "singular", "converged", "n_evaluations"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(result, name))
    with pytest.raises(flc.LMMError, match="problem 4 could not be fitted: y is constant"):
        whole[4]


def test_evaluations_by_lanes_and_by_single_fits_are_added(rng):
    y, X, Z, groups, each, _ = problems(rng, 8, 1, sizes=(20, 21), rows=(8, 9))
    y[each == 5] += 1e6 * np.repeat(rng.standard_normal(20), 8)
    result = flc.fit_each(y, X, Z, groups, each)
    assert np.flatnonzero(result.by_lanes == 0).tolist() == [5]
    assert result.n_evaluations[5] > single((y, X, Z, groups, each, None), 5).n_evaluations


def test_few_groups_of_which_one_makes_up_most_are_searched_from_many_points(rng):
    y, X, Z, groups, each, _ = problems(rng, 24, 2, sizes=(20, 21), rows=(14, 16), tau=0.5)
    for k in range(1, 24, 6):
        odd = (each == k) & (groups == groups[each == k][0])
        y[odd] += 40.0 * rng.standard_normal(odd.sum())
    # a group of one row tells of one direction alone
    alone = np.flatnonzero((each == 3) & (groups == groups[each == 3][0]))[1:]
    stacked = tuple(np.delete(part, alone, axis=0) for part in (y, X, Z, groups, each))
    result = flc.fit_each(*stacked)
    assert result.by_lanes.all()
    # no first search takes so many evaluations
    closely = result.n_evaluations > 100
    assert closely[1::6].all() and closely.sum() <= 6 and closely[3]
    for k in range(24):
        one = single((*stacked, None), k)
        assert result.criterion[k] <= one.criterion + 1e-8 * abs(one.criterion)


def test_fewer_than_six_groups_for_each_effect_are_searched_from_many_points(rng):
    for groups, closely in ((11, True), (13, False)):
        stacked = problems(rng, 16, 2, sizes=(groups, groups + 1), rows=(14, 16), tau=0.5)
        result = flc.fit_each(*stacked[:5])
        assert bool((result.n_evaluations > 100).sum() <= 8) is not closely
        assert (result.n_evaluations > 100).all() == closely
        for k in range(16):
            one = single(stacked, k)
            assert result.by_lanes[k] and result.converged[k]
            assert result.criterion[k] == pytest.approx(one.criterion, abs=1e-7)
            np.testing.assert_allclose(result.params[k], one.params, atol=1e-7 * np.max(one.bse), rtol=0.0)


def of_two_times(rng, count, m, tells, alone):
    """Problems of m groups of 16 rows, hardly different from each other; of slopes one tells a share `tells`."""
    x = np.tile([1.0, -1.0], 8 * m)
    x[:16] *= np.sqrt(tells)
    Z = np.tile(np.column_stack([np.ones(16 * m), x]), (count, 1))
    groups, each = np.tile(np.repeat(np.arange(m), 16), count), np.repeat(np.arange(count), 16 * m)
    b = 0.05 * rng.standard_normal((count, m, 2))
    y = np.sum(Z * b[each, groups], axis=1) + rng.standard_normal(len(Z))
    # the criterion is not convex about the boundary
    means = np.einsum("krz,kr->kz", Z.reshape(-1, 16, 2), y.reshape(-1, 16)) / (Z.reshape(-1, 16, 2) ** 2).sum(axis=1)
    y -= 0.9 * np.sum(Z * np.repeat(means, 16, axis=0), axis=1)
    kept = np.tile(np.arange(16 * m) < 16 * m - (15 if alone else 0), count)
    return y[kept], Z[kept], Z[kept], groups[kept], each[kept], None


@pytest.mark.parametrize(
    ("m", "tells", "alone", "closely"),
    [(13, 0.6, False, False), (13, 0.4, False, True), (13, 0.6, True, True), (11, 0.6, False, True)],
)
def test_irregular_data_are_searched_by_what_the_group_that_tells_least_tells(rng, m, tells, alone, closely):
    """Half of what the one that tells most does is enough; a group of one row tells nothing of a direction."""
    stacked = of_two_times(rng, 24, m, tells, alone)
    result = flc.fit_each(*stacked[:5])
    # some are regular by chance, or their groups vary like few
    many = np.mean(result.n_evaluations[result.by_lanes == 1] > 125)
    assert many > 0.8 if closely else many < 0.2
    for k in range(24):
        one = single(stacked, k)
        assert result.criterion[k] <= one.criterion + 1e-8 * abs(one.criterion)


def two_valleys(rng, m, n):
    """Groups with two slopes each, drawn with replacement from so few that some of them repeat, as in a bootstrap."""
    size = 10.0 ** rng.uniform(-1.0, 1.0, 2)
    x = np.column_stack([np.ones(m * n), rng.standard_normal(m * n)])
    codes = np.repeat(np.arange(m), n)
    y = np.sum(x * (rng.standard_cauchy((m, 1)) * rng.standard_normal((m, 2)) * size)[codes], axis=1)
    y += rng.standard_normal(m * n)
    rows = (rng.integers(m, size=m)[:, None] * n + np.arange(n)).ravel()
    return y[rows], x[rows], codes


def test_problems_with_several_minima_end_at_the_lowest(rng):
    drawn = [two_valleys(rng, int(rng.integers(5, 12)), int(rng.integers(3, 7))) for _ in range(40)]
    y, x, codes = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
    each = np.repeat(np.arange(40), [len(one[0]) for one in drawn])
    result = flc.fit_each(y, x, x, codes, each)
    assert (result.by_lanes & result.converged).sum() >= 30
    several = 0
    for k, (own, columns, groups) in enumerate(drawn):
        if not (result.by_lanes[k] and result.converged[k]):
            continue
        problem = landscapes.Problem("two_valleys", k, True, own, columns, (landscapes.Term(columns, groups),))
        assert result.criterion[k] <= landscapes.lowest(problem) + 1e-6
        model = flc.LinearMixedModel(own, columns, columns, groups)
        # where the lowest minimum is not the one that a search from moments leads to
        engine = model.problem.criterion()
        first = minimize_newton(engine, model.problem.start(engine))[3] + criterion_offset(model.problem, True)
        several += first > result.criterion[k] + 1e-4
    assert several >= 1


def test_single_results_labels_and_tables(rng):
    y, X, Z, groups, each, _ = problems(rng, 5, 2)
    genes = np.array(["e", "d", "c", "b", "a"])[each]
    result = flc.fit_each(y, X, Z, groups, genes, exog_names=["one", "x"])
    assert result.labels.tolist() == list("abcde")
    one = result["b"]
    np.testing.assert_allclose(one.params, result.params[1], rtol=1e-7)
    assert one.nobs == result.nobs[1]
    assert sorted(one.group_labels) == sorted(np.unique(groups[each == 3]))
    frame = result.to_frame()
    assert frame["problem"].tolist() == list("abcde")
    np.testing.assert_array_equal(frame["x"], result.params[:, 1])
    np.testing.assert_allclose(frame["sd_z0|group"] ** 2, result.covariance[:, 0, 0])
    with pytest.raises(flc.LMMError, match="no problem has the label 'z'"):
        result["z"]
    with pytest.raises(IndexError):
        result[5]


def test_input_that_does_not_fit_is_refused(rng):
    y, X, Z, groups, each, _ = problems(rng, 4, 1)
    with pytest.raises(flc.LMMError, match="each has 3 rows but y has"):
        flc.fit_each(y, X, Z, groups, each[:3])
    with pytest.raises(flc.LMMError, match="groups has 3 rows but y has"):
        flc.fit_each(y, X, Z, groups[:3], each)
    with pytest.raises(flc.LMMError, match="X has 3 rows"):
        flc.fit_each(y, X[:3], Z, groups, each)
    with pytest.raises(flc.LMMError, match="each has missing labels"):
        flc.fit_each(y, X, Z, groups, np.where(each == 1, np.nan, each))
    with pytest.raises(flc.LMMError, match="weights must be positive"):
        flc.fit_each(y, X, Z, groups, each, weights=np.zeros(len(y)))
    broken = y.copy()
    broken[7] = np.nan
    with pytest.raises(flc.LMMError, match=r"y has 1 values that are not finite \(first: nan at row 7\)"):
        flc.fit_each(broken, X, Z, groups, each)
    for name in ("weights", "offset"):
        values = np.ones(len(y))
        values[9] = np.inf
        with pytest.raises(flc.LMMError, match=rf"{name} has 1 values that are not finite \(first: inf at row 9\)"):
            flc.fit_each(y, X, Z, groups, each, **{name: values})


def test_by_a_column_of_a_table(rng):
    pd = pytest.importorskip("pandas")
    y, X, _, groups, each, _ = problems(rng, 7, 2)
    table = pd.DataFrame({"y": y, "x": X[:, 1], "arm": rng.choice(["a", "b", "c"], len(y)), "g": groups, "k": each})
    table.loc[(table["k"] == 2) & (table["arm"] == "b"), "arm"] = "a"
    table.loc[5, "x"] = np.nan
    result = flc.fit_by("y ~ x + arm + (x | g)", table, by="k")
    assert result.labels.tolist() == list(range(7))
    for k in range(7):
        one = flc.lmm("y ~ x + arm + (x | g)", table[table["k"] == k]).fit()
        kept = ~np.isnan(result.params[k])
        assert [n for n, there in zip(result.exog_names, kept, strict=True) if there] == list(one.params.index)
        np.testing.assert_allclose(result.params[k, kept], one.params, atol=AGREE * np.max(one.bse), rtol=0.0)
        assert result.criterion[k] == pytest.approx(one.criterion, abs=1e-8)
    assert result.to_frame().index.tolist() == list(range(7))
    with pytest.raises(flc.LMMError, match="has no column 'gene'"):
        flc.fit_by("y ~ x + (1 | g)", table, by="gene")
    with pytest.raises(flc.LMMError, match="takes random effects with free covariances"):
        flc.fit_by("y ~ x + cs(0 + arm | g)", table, by="k")
    # a row that is left out needs no label
    table.loc[5, "k"] = np.nan
    again = flc.fit_by("y ~ x + arm + (x | g)", table, by="k")
    np.testing.assert_array_equal(again.criterion, result.criterion)
    table["k"] = table["k"].where(table["k"] != 3)
    with pytest.raises(flc.LMMError, match="by='k': the column has missing values"):
        flc.fit_by("y ~ x + (1 | g)", table, by="k")


@pytest.mark.parametrize(
    "formula", ["y ~ x * arm + (1 | g) + (1 | h)", "y ~ x + arm + (x | g) + (1 | h)", "y ~ x + arm + (1 | g / k)"]
)
def test_parts_of_a_table_with_several_factors(formula):
    """Each part as a model of its rows alone."""
    rng = np.random.default_rng(21)
    n = 4 * 48
    part, g, h = np.repeat(list("dacb"), 48), np.tile(np.repeat(np.arange(8), 6), 4), np.tile(np.arange(6), 32)
    u, v, x = rng.normal(size=(4, 8)), rng.normal(size=(4, 6)), rng.normal(size=n)
    at = np.repeat(np.arange(4), 48)
    y = x + u[at, g] + v[at, h] + rng.normal(size=n)
    data = {
        "y": y, "x": x, "arm": np.array(["s", "t", "t"])[rng.integers(0, 3, n)], "g": np.char.add("g", g.astype(str)),
        "h": h, "k": g * 0 + h % 2, "part": part, "w": rng.uniform(0.5, 2.0, n),
    }  # fmt: skip
    shuffled = rng.permutation(n)
    data = {name: values[shuffled] for name, values in data.items()}
    result = flc.fit_by(formula, data, by="part", weights="w")
    assert list(result.labels) == list("abcd") and result.converged.all()
    joint = result.test(["x", "arm[T.t]"], ddf="kenward-roger")
    components, means, anova = result.variance_components(), result.emmeans("arm"), result.anova("II")
    for i, label in enumerate("abcd"):
        own = {name: values[data["part"] == label] for name, values in data.items()}
        one = flc.lmm(formula, own, weights="w").fit()
        assert result.criterion[i] == pytest.approx(one.criterion, rel=1e-9)
        np.testing.assert_allclose(result.params[i], np.asarray(one.tidy()["estimate"], dtype=float), rtol=1e-5)
        np.testing.assert_allclose(result.df[i], np.asarray(one.tidy()["df"], dtype=float), rtol=1e-4)
        wanted = one.test(["x", "arm[T.t]"], ddf="kenward-roger")
        assert joint.pvalues[i] == pytest.approx(wanted.pvalue, rel=1e-4)
        table = one.variance_components(method="wald")
        errors = dict(zip(list(table["term"]), np.asarray(table["std_error"], dtype=float), strict=True))
        np.testing.assert_allclose(components.std_error[i], [errors[name] for name in components.names], rtol=1e-3)
        wanted = one.emmeans("arm", at={"x": data["x"].mean()}).to_frame()
        np.testing.assert_allclose(means.estimate[i], np.asarray(wanted["estimate"], dtype=float), rtol=1e-5)
        wanted = one.anova("II").to_frame()
        F = dict(zip(list(wanted["term"]), np.asarray(wanted["statistic"], dtype=float), strict=True))
        assert anova["x"].statistic[i] ** 2 == pytest.approx(F["x"], rel=1e-4)
        assert result.of(label).criterion == pytest.approx(one.criterion, rel=1e-9)
    part = result[["c", "a"]]
    np.testing.assert_array_equal(part.params, result.params[[2, 0]])
    assert part.one(0).criterion == result.of("c").criterion
    whole = type(result).concat([result[:2], result[2:]])
    np.testing.assert_array_equal(whole.params, result.params)
    assert whole.one(3).criterion == pytest.approx(result.criterion[3], rel=1e-12)
    assert result.icc().keys() == one.icc().keys()


USES = (
    lambda r: r.test([[0.0, 1.0]]), lambda r: r[3], lambda r: r[:3], lambda r: r.random_effects(), lambda r: r.icc(),
    lambda r: r.tidy(ddf="kenward-roger"), lambda r: r.variance_components(),
    lambda r: r.random_effect_test(null="mixture"), lambda r: r.permute([[0.0, 1.0]], 9),
)  # fmt: skip


def test_rows_that_are_changed_after_the_fit_are_not_used(rng):
    # small arrays are copied
    y, X, Z, groups, each, w = problems(rng, 12, 2, rows=(90, 100), weights=True)
    for name, change in (("y", y), ("X", X), ("weights", w)):
        result = flc.fit_each(y, X, Z, groups, each, weights=w)
        before = result.pvalues
        change += 1.0
        for use in USES:
            with pytest.raises(flc.LMMError, match=rf"{name} has been changed since it was fitted.*{name}.copy\(\)"):
                use(result)
        np.testing.assert_array_equal(result.pvalues, before)
    model = flc.LinearMixedModel(y[each == 0], X[each == 0], None, groups[each == 0])
    Y = rng.standard_normal((20, model.nobs))
    weights, c = rng.uniform(0.5, 2.0, Y.shape), rng.standard_normal(Y.shape)
    for name, change in (("Y", Y), ("weights", weights), ("covariates['c']", c)):
        fits = model.fit_many(Y, weights=weights, covariates={"c": c})
        change += 1.0
        with pytest.raises(flc.LMMError) as raised:
            fits.test("c")
        assert f"{name} has been changed since it was fitted" in str(raised.value)
