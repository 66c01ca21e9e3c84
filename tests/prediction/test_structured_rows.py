"""Predictions where the residuals have a structure, against conditional normal distributions in full."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
import oracle_residual as dense

MEAN = 1e-7
"""Of means and standard errors: one Cholesky factor by subjects against an inverse of all rows."""
FREEDOM = 2e-4
"""Of degrees of freedom: second derivatives by differences of differences."""


def trial(seed: int = 3, n: int = 26, m: int = 4) -> pd.DataFrame:
    """Visits of subjects, some of them at the end not in the fit; a tenth is missing."""
    rng = np.random.default_rng(seed)
    i, v = (part.ravel() for part in np.indices((n, m)))
    C = 0.6 ** np.abs(np.subtract.outer(np.arange(m), np.arange(m)))
    sd = np.array([1.0, 1.4, 1.8, 1.5])
    e = (rng.standard_normal((n, m)) @ np.linalg.cholesky(C).T * sd).ravel()
    site = i % 5
    data = pd.DataFrame({"id": [f"s{k:02d}" for k in i], "v": v, "site": site, "arm": np.where(i % 2, "a", "b")})
    data["t"] = v + rng.uniform(0.0, 0.4, n * m)
    data["x"] = rng.standard_normal(n * m)
    data["size"] = rng.uniform(0.5, 2.0, n * m)
    data["w"] = rng.uniform(0.5, 2.0, n * m)
    data["y"] = 1.0 + data.x + rng.standard_normal(5)[site] + e
    role = rng.choice(["fit", "new"], n * m, p=[0.75, 0.25]).astype(object)
    role[i >= n - 4] = rng.choice(["later", "new"], int((i >= n - 4).sum()))
    data["role"] = role
    return data.sample(frac=1.0, random_state=seed).reset_index(drop=True)


CASES = [
    ("y ~ x + arm", "us(v | id)", None, None),
    ("y ~ x", "ar1h(v | id, by=arm)", None, "w"),
    ("y ~ x + (1 | site)", "ar1(v | id)", None, None),
    ("y ~ x + (x | site)", "toep(v | id)", None, "w"),
    ("y ~ x + (x | id)", "car1(t | id)", None, None),
    ("y ~ x + (1 | site) + (1 | id)", "ar1(v | id)", None, None),
    ("y ~ x", "ar1(v | id)", "power(size)", None),
    ("y ~ x", "cs(v | id)", "~ arm", "w"),
    ("y ~ x + (1 | id)", None, "exp(size, by=arm)", None),
    ("y ~ x", "us@ar1(arm, v | site)", None, None),
]
IDS = [" ".join(str(part) for part in case if part) for case in CASES]


def posed(case, data=None):
    """The data, the fit of its part, and the model of all rows."""
    formula, residual, variance, weights = case
    data = trial() if data is None else data
    if residual is not None and residual.startswith("us@"):  # one row for each response of a site at a visit
        data = data.drop_duplicates(["site", "arm", "v"]).reset_index(drop=True)
    options = {"residual": residual, "variance": variance, "weights": weights}
    fit = flc.lmm(formula, data[data.role == "fit"], **options).fit()
    return data, fit, flc.lmm(formula, data, **options)


def rows_of(data, *roles):
    return np.flatnonzero(data.role.isin(roles).to_numpy())


def spread(fit, joint, data, old, target):
    """Means and variances of new rows at any (theta, phi, log sigma^2), and the deviance there."""
    k = fit.model.structure.n_parameters
    rows, new = rows_of(data, "fit"), rows_of(data, "new")
    # the rows of the fit are those of the joint model in the same order
    y = data.y.to_numpy()

    def point(t):
        L = fit.model.structure.factor(t[:k]) if k else np.zeros((0, 0))
        return L @ L.T, t[k:-1], float(np.exp(t[-1]))

    def variance(t):
        return dense.prediction(joint, old, new, rows, y, point(t), target)[1]

    def deviance(t):
        G, phi, sigma2 = point(t)
        V = sigma2 * dense.covariance(joint, phi, G)[np.ix_(rows, rows)]
        return dense.deviance(V, joint.exog[rows], y[rows])

    at = np.append(fit.theta, np.log(fit.sigma2))
    mean = dense.prediction(joint, old, new, rows, y, point(at), target)[0]
    return mean, variance, deviance, at


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_rows_given_those_observed(case):
    data, fit, joint = posed(case)
    old, new = rows_of(data, "fit"), data[data.role == "new"]
    mean, _, deviance, at = spread(fit, joint, data, old, "observation")
    covariance = dense.parameter_covariance(deviance, at, 1e-3, 2e-3)
    np.testing.assert_allclose(fit.predict(new, "all", "population"), mean, rtol=MEAN, atol=MEAN)
    for later in (False, True):
        observed = {}
        if later:
            if case[1] is not None and case[1].startswith("us@"):
                continue  # sites are the subjects, and all are in the fit
            old, observed = rows_of(data, "fit", "later"), {"observed": data[data.role == "later"]}
        for interval, target in (("confidence", "given"), ("prediction", "observation")):
            if case[1] is None and interval == "confidence":
                target = "effects"
            mean, variance, _, _ = spread(fit, joint, data, old, target)
            found = fit.predict(new, "all", "population", interval, **observed)
            seen = np.ones(len(new), dtype=bool)
            for f in fit.model.factors if fit.model.structure.q and interval == "confidence" else ():
                # the effects of levels of which nothing is known are no part of a mean
                seen &= new[f.grouping.name].isin(set(data[f.grouping.name].iloc[old])).to_numpy()
            np.testing.assert_allclose(found["mean"], mean, rtol=MEAN, atol=MEAN)
            np.testing.assert_allclose(found["std_error"][seen] ** 2, variance(at)[seen], rtol=MEAN)
            df = dense.degrees_of_freedom(covariance, variance, at, 2e-3)
            np.testing.assert_allclose(found["df"][seen], np.maximum(df, 1.0)[seen], rtol=FREEDOM)


@pytest.mark.parametrize("case", [CASES[0], CASES[3], CASES[5]], ids=[IDS[0], IDS[3], IDS[5]])
def test_rows_of_the_fit(case):
    # their residuals are their own: a mean is x'beta + z'b, an observation has another residual
    data, fit, _ = posed(case)
    data = data[data.role == "fit"].reset_index(drop=True)
    twice = pd.concat([data, data], ignore_index=True)
    twice["role"] = np.repeat(["fit", "new"], len(data))
    twice["id"] = [f"{i} {role}" for i, role in zip(twice.id, twice.role, strict=True)]
    joint = flc.lmm(case[0].replace("(1 | id)", "(1 | own)").replace("(x | id)", "(x | own)"),
                    twice.assign(own=twice.id.str[:3]), residual=case[1], weights=case[3])  # fmt: skip
    old = rows_of(twice, "fit")
    for interval, target in (("confidence", "effects"), ("prediction", "observation")):
        mean, variance, deviance, at = spread(fit, joint, twice, old, target)
        found = fit.predict(None, "all", interval=interval)
        np.testing.assert_allclose(found["mean"], mean, rtol=MEAN, atol=MEAN)
        np.testing.assert_allclose(found["std_error"] ** 2, variance(at), rtol=MEAN)
        np.testing.assert_allclose(found["mean"], fit.fittedvalues, rtol=MEAN, atol=MEAN)
    covariance = dense.parameter_covariance(deviance, at, 1e-3, 2e-3)
    df = dense.degrees_of_freedom(covariance, variance, at, 2e-3)
    np.testing.assert_allclose(found["df"], np.maximum(df, 1.0), rtol=FREEDOM)


def test_effects_of_some_factors():
    data, fit, _ = posed(CASES[5])
    new = data[data.role == "new"]
    site = dict(zip(*(fit.model.factor("site").grouping.labels.tolist(), fit.blups[1][:, 0].tolist()), strict=True))
    population = np.asarray(fit.predict(new))
    named = fit.predict(new, "site", interval="prediction")
    np.testing.assert_allclose(named["mean"], population + new.site.map(site), rtol=MEAN)
    given = fit.predict(new, random_effects={"site": fit.random_effects["site"]}, interval="prediction")
    np.testing.assert_allclose(given["mean"], named["mean"], rtol=MEAN)
    # effects that are given have no error, those of subjects and the residual vary
    x, rest = np.column_stack([np.ones(len(new)), new.x]), fit.G["id"][0, 0] + fit.sigma2
    np.testing.assert_allclose(given["std_error"] ** 2, rest + np.einsum("ij,jk,ik->i", x, fit.cov, x), rtol=MEAN)
    assert (named["std_error"] > given["std_error"]).all()
    alone = fit.predict(new, interval="prediction")
    assert (alone["std_error"] > named["std_error"]).all()


@pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger"])
def test_a_structure_without_correlation_is_none(ddf):
    data = trial()
    fitted, new = data[data.role == "fit"], data[data.role == "new"]
    plain = flc.lmm("y ~ x + (x | id)", fitted).fit()
    other = flc.lmm("y ~ x + (x | id)", fitted, residual="id(v | id)").fit()
    for effects in ("population", "all") if ddf == "satterthwaite" else ("population",):
        for interval in ("confidence", "prediction"):
            options = {"effects": effects, "new_levels": "population", "interval": interval, "ddf": ddf}
            options["information"] = "auto" if ddf == "satterthwaite" else "observed"
            one, two = plain.predict(new, **options), other.predict(new, **options)
            for name in ("mean", "std_error", "df"):
                np.testing.assert_allclose(two[name], one[name], rtol=1e-5)
    with pytest.raises(flc.LMMError, match="with structured residuals is for effects='population'"):
        other.predict(new, "all", "population", "prediction", ddf="kenward-roger")


def arrays_of(data):
    X = np.column_stack([np.ones(len(data)), data.x.to_numpy()])
    return {"X": X, "y": data.y.to_numpy(), "residual": flc.Residual("ar1", data.id.to_numpy(), data.v.to_numpy())}


@pytest.mark.parametrize("random", [False, True])
def test_arrays_in_the_place_of_tables(random):
    data = trial()
    fitted, new, later = (data[data.role == role] for role in ("fit", "new", "later"))
    formula = "y ~ x + (1 | site)" if random else "y ~ x"
    table = flc.lmm(formula, fitted, residual="ar1(v | id)").fit()

    def posed(part):
        return arrays_of(part) | ({"groups": part.site.to_numpy()} if random else {})

    given = posed(fitted)
    model = flc.LinearMixedModel(given["y"], given["X"], groups=given.get("groups"), residual=given["residual"])
    arrays = model.fit()
    ones = {"Z": np.ones((len(new), 1))} if random else {}
    for options in ({}, {"observed": later}):
        mine = {"observed": posed(later) | ({"Z": np.ones((len(later), 1))} if random else {})} if options else {}
        one = table.predict(new, "all", "population", "prediction", **options)
        two = arrays.predict(posed(new) | ones, "all", "population", "prediction", **mine)
        for name in ("mean", "std_error", "df"):
            np.testing.assert_allclose(two[name], one[name], rtol=1e-6)
    np.testing.assert_allclose(
        arrays.at(data=posed(later) | ({"Z": np.ones((len(later), 1))} if random else {})).llf,
        table.at(data=later).llf, rtol=1e-8,
    )  # fmt: skip
    without = {key: value for key, value in posed(new).items() if key != "residual"}
    with pytest.raises(flc.LMMError, match=r"data has no 'residual': give Residual\('ar1', subject, time\)"):
        arrays.predict(without | ones, "all", "population")
    with pytest.raises(flc.LMMError, match="has the structure us, and the model ar1"):
        arrays.predict(without | ones | {"residual": flc.Residual("us", new.id.to_numpy())}, "all", "population")
    with pytest.raises(flc.LMMError, match="has no time"):
        arrays.predict(without | ones | {"residual": flc.Residual("ar1", new.id.to_numpy())}, "all", "population")
    with pytest.raises(flc.LMMError, match="is not among those of the fit"):
        wrong = {"residual": flc.Residual("ar1", new.id.to_numpy(), new.v.to_numpy() + 9)}
        arrays.predict(without | ones | wrong, "all", "population")


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_model_on_other_rows(case):
    data, fit, _ = posed(case)
    other = data[data.role != "fit"].reset_index(drop=True)
    weights = None if case[3] is None else other.w.to_numpy()
    moved = fit.at(data=other, weights=weights)
    joint = flc.lmm(case[0], data, residual=case[1], variance=case[2], weights=case[3])
    rows = rows_of(data, "later", "new")
    V = fit.sigma2 * dense.covariance(joint, fit.phi, fit.relative_covariance)[np.ix_(rows, rows)]
    rest = data.y.to_numpy()[rows] - joint.exog[rows] @ fit.beta
    expected = len(rows) * np.log(2.0 * np.pi) + np.linalg.slogdet(V)[1] + rest @ np.linalg.solve(V, rest)
    assert moved.llf == pytest.approx(-expected / 2.0, rel=1e-8)
    drawn = fit.simulate(4000, 7, data=other, weights=weights)
    sd = np.sqrt(np.diag(V))
    assert np.abs((np.cov(drawn.T) - V) / np.outer(sd, sd)).max() < 5.0 * np.sqrt(2.0 / 4000)


def test_draws_given_what_was_observed():
    data, fit, joint = posed(CASES[3])
    new = data[data.role == "new"].reset_index(drop=True)
    weights = new.w.to_numpy()
    drawn = fit.simulate(4000, 3, data=new, effects="all", weights=weights)
    old, rows = rows_of(data, "fit"), rows_of(data, "new")
    R = fit.sigma2 * dense.covariance(joint, fit.phi)
    K = R[np.ix_(rows, old)] @ np.linalg.inv(R[np.ix_(old, old)])
    left = R[np.ix_(rows, rows)] - K @ R[np.ix_(old, rows)]
    known = new.site.isin(set(data.site.iloc[old])).to_numpy()
    assert known.all()
    mean = np.asarray(fit.predict(new, "all", "population", weights=weights))
    sd = np.sqrt(np.diag(left))
    assert np.abs((drawn.mean(axis=0) - mean) / sd).max() < 5.0 / np.sqrt(4000)
    assert np.abs((np.cov(drawn.T) - left) / np.outer(sd, sd)).max() < 5.0 * np.sqrt(2.0 / 4000)
    # without data the residuals are drawn anew, the BLUPs kept
    again = fit.simulate(4000, 3, effects="all")
    assert np.abs((again.mean(axis=0) - fit.fittedvalues) / again.std(axis=0)).max() < 5.0 / np.sqrt(4000)
    own = fit.sigma2 * dense.covariance(fit.model, fit.phi)
    sd = np.sqrt(np.diag(own))
    assert np.abs((np.cov(again.T) - own) / np.outer(sd, sd)).max() < 5.0 * np.sqrt(2.0 / 4000)


def test_stated_parameters_have_no_error():
    data, fit, joint = posed(CASES[0])
    new = data[data.role == "new"]
    stated = fit.at()
    found = stated.predict(new, "all", "population", "prediction")
    rows, mine = rows_of(data, "fit"), rows_of(data, "new")
    V = fit.sigma2 * dense.covariance(joint, fit.phi)
    left = V[np.ix_(mine, mine)] - V[np.ix_(mine, rows)] @ np.linalg.solve(V[np.ix_(rows, rows)], V[np.ix_(rows, mine)])
    np.testing.assert_allclose(found["std_error"] ** 2, np.diag(left), rtol=MEAN)
    assert np.isinf(found["df"]).all()
    # without responses of the rows of the design, those observed tell all
    rng = np.random.default_rng(0)
    empty = flc.assume("y ~ x", data.drop(columns="y"), [1.0, 1.0], R={"rho|id": 0.5, "sigma2|id": 2.0},
                       residual="ar1(v | id)")  # fmt: skip
    seen = pd.DataFrame({"id": ["n", "n"], "v": [0, 1], "x": 0.0, "y": rng.standard_normal(2)})
    told = empty.predict(pd.DataFrame({"id": ["n"], "v": [2], "x": [1.0]}), "all", observed=seen, interval="prediction")
    assert float(told["mean"].iloc[0]) == pytest.approx(2.0 + 0.5 * (seen.y.iloc[1] - 1.0), rel=1e-10)
    assert float(told["std_error"].iloc[0]) == pytest.approx(np.sqrt(2.0 * (1.0 - 0.25)), rel=1e-10)


def test_refusals():
    data, fit, _ = posed(CASES[0])
    new = data[data.role == "new"]
    with pytest.raises(flc.LMMError, match=r"observed has the subjects .* that the model was fitted to"):
        fit.predict(new, "all", "population", observed=data[data.role == "fit"].iloc[:1])
    two = pd.concat([data[data.role == "later"].iloc[:1]] * 2)
    with pytest.raises(flc.LMMError, match=r"observed: residual=.* two rows at one place"):
        fit.predict(new, "all", "population", observed=two)
    with pytest.raises(flc.LMMError, match="data: v 9 is not among those of the fit"):
        fit.at(data=new.assign(v=9))
    by = posed(CASES[1])[1]
    with pytest.raises(flc.LMMError, match="has another level of arm than the rows observed of its subject"):
        by.predict(new.assign(arm=new.arm.map({"a": "b", "b": "a"})), "all", "population")
    with pytest.raises(flc.LMMError, match="varies within the subject"):
        by.at(data=data.assign(arm=np.where(data.v == 0, "a", "b")), weights=np.ones(len(data)))


def test_a_long_series():
    # one subject of many rows, without a matrix over all of them for each new row
    rng = np.random.default_rng(1)
    n = 1_500
    rows = pd.DataFrame({"id": 1, "t": np.cumsum(rng.uniform(0.5, 1.5, n)), "y": rng.standard_normal(n).cumsum() * 0.1})
    rows = pd.concat([rows, rows.assign(id=2, y=rng.standard_normal(n))])
    fit = flc.lmm("y ~ 1", rows, residual="car1(t | id)").fit()
    ahead = pd.DataFrame({"id": [1, 1, 3], "t": [rows.t.max() + 0.5, rows.t.max() + 1e6, 0.0]})
    found = fit.predict(ahead, "all", "population", "prediction")
    rho = float(np.asarray(fit.residual_parameters()["estimate"])[1])
    last = rows[rows.id == 1].y.iloc[-1]
    mean = fit.beta[0] + rho**0.5 * (last - fit.beta[0])
    assert found["mean"].iloc[0] == pytest.approx(mean, rel=1e-6)
    assert found["std_error"].iloc[0] ** 2 == pytest.approx(fit.sigma2 * (1.0 - rho), rel=0.02)
    np.testing.assert_allclose(found["mean"].iloc[1:], fit.beta[0], rtol=1e-9)
