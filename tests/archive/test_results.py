"""Results in files: what is read says what was written, from arrays and text only."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
from fastlmm_core.archive.residuals import plain_residual

RTOL = 1e-8
"""Criteria and estimates of rows that are conditioned anew, from natural units."""


def again(result: flc.LMMResult, tmp_path) -> flc.LMMResult:
    path = tmp_path / "result.flc"
    result.save(path)
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".npy"):
                np.lib.format.read_array(io.BytesIO(archive.read(name)), allow_pickle=False)
            else:
                json.loads(archive.read(name))
    return flc.load(path)


def same(one: flc.LMMResult, other: flc.LMMResult) -> None:
    assert type(one) is type(other)
    assert type(one.model) is type(other.model)
    for name in ("reml", "converged", "singular", "n_evaluations", "message", "n_groups", "singular_components"):
        assert getattr(one, name) == getattr(other, name), name
    np.testing.assert_allclose(one.beta, other.beta, rtol=1e-10)
    for name in ("cov", "covariance", "sigma2", "theta"):
        size = np.nanmax(np.abs(getattr(one, name)), initial=0.0)
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=RTOL, atol=1e-9 * size)
    if one.model.has_response:
        np.testing.assert_allclose(one.criterion, other.criterion, rtol=1e-10)
        for mine, theirs in zip(one.blups, other.blups, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-8 * (1.0 + np.abs(mine).max(initial=0.0)))
    for mine, theirs in zip(one.model.factors, other.model.factors, strict=True):
        np.testing.assert_array_equal(mine.grouping.labels, theirs.grouping.labels)
        assert mine.grouping.labels.dtype == theirs.grouping.labels.dtype
    assert repr(one.model) == repr(other.model)
    np.testing.assert_allclose(one.simulate(2, 1), other.simulate(2, 1), rtol=1e-6)


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow", "dict"])
@pytest.mark.parametrize(
    ("formula", "name", "reml"),
    [
        ("Reaction ~ Days + (Days | Subject)", "sleepstudy", True),
        ("Reaction ~ Days + (Days || Subject)", "sleepstudy", False),
        ("strength ~ 1 + (1 | batch/cask)", "pastes", True),
        ("diameter ~ 1 + (1 | plate) + (1 | sample)", "penicillin", True),
        ("Yield ~ 1 + (1 | Batch)", "dyestuff2", True),
    ],
)
def test_fits(formula, name, reml, library, tmp_path):
    if library != "dict":
        pytest.importorskip(library)
    fit = flc.lmm(formula, flc.datasets.load(name, library)).fit(reml=reml)
    found = again(fit, tmp_path)
    same(found, fit)
    assert str(found.summary()) == str(fit.summary())
    for one, other in ((found.tidy(), fit.tidy()), (found.variance_components(), fit.variance_components())):
        assert type(one) is type(other)
    if library == "pandas" and len(fit.model.factors) == 1:
        np.testing.assert_allclose(found.df, fit.df, rtol=1e-5)
        components = found.variance_components(), fit.variance_components()
        np.testing.assert_allclose(*(table["std_error"] for table in components), rtol=1e-4, equal_nan=True)


@pytest.mark.parametrize(
    "term", ["cs(Days + late | Subject)", "ar1(0 + third | Subject, hom=FALSE)", "fa0(Days | Subject)"]
)
def test_restricted_covariances(term, tmp_path):
    data = flc.datasets.load("sleepstudy")
    data = data.assign(late=(data.Days > 4) * 1.0, third=(data.Days // 4).astype(int).astype(str))
    fit = flc.lmm(f"Reaction ~ Days + {term}", data).fit()
    found = again(fit, tmp_path)
    same(found, fit)
    np.testing.assert_allclose(found.df, fit.df, rtol=1e-6)
    components = found.variance_components(), fit.variance_components()
    np.testing.assert_allclose(*(table["std_error"] for table in components), rtol=1e-5, equal_nan=True)


TRANSFORMS = [
    "y ~ center(x) + C(a, contr.sum) + bs(x, df=4) + C(a):x + c + (x | g)",
    "y ~ C(a, contr.treatment('v')) + cr(x, df=3) + scale(x) + (center(x) | g)",
    "y ~ C(a, contr.poly) + C(c, contr.helmert) + between(x, g) + within(x, g) + (1 | g)",
    "log(y) ~ poly(x, 2) * a + (0 + a | g)",
    "y ~ a * c + np.exp(x / 5) + (1 | g) + (1 | k)",
]


@pytest.mark.parametrize("formula", TRANSFORMS)
def test_transforms_and_levels_of_new_data(formula, tmp_path):
    pd = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    n = 120
    data = pd.DataFrame({
        "g": np.repeat(np.arange(20), 6), "k": rng.integers(0, 7, n).astype(str), "x": rng.uniform(1, 5, n),
        "a": np.tile(["u", "v", "w"], 40), "y": rng.uniform(1, 9, n), "c": pd.Categorical(np.tile(["q", "p"], 60)),
    }, index=pd.Index(np.arange(n) * 3, name="row"))  # fmt: skip
    data.loc[6, "x"] = np.nan
    try:
        fit = flc.lmm(formula, data).fit()
    except flc.LMMError as error:
        if "np" not in str(error):
            raise
        pytest.skip("formulas do not know np")
    found = again(fit, tmp_path)
    same(found, fit)
    new = pd.DataFrame({"g": [3, 4], "k": ["1", "2"], "x": [2.0, 4.5], "a": ["w", "u"], "c": ["p", "q"], "y": [2.0, 3]})
    for options in ({}, {"effects": "all", "interval": "prediction"}):
        one, other = (result.predict(new, **options) for result in (found, fit))
        np.testing.assert_allclose(one, other, rtol=1e-6)
        assert one.index.equals(other.index)
    assert found.fittedvalues.index.equals(fit.fittedvalues.index)
    assert found.model.n_dropped == fit.model.n_dropped == 1
    np.testing.assert_array_equal(found.rows_used, fit.rows_used)
    assert found.model.spec.reference == fit.model.spec.reference
    table = fit.emmeans("a").to_frame() if ":" not in formula else None
    if table is not None:
        np.testing.assert_allclose(found.emmeans("a").to_frame()["estimate"], table["estimate"], rtol=1e-6)
        one, other = found.anova(), fit.anova()
        np.testing.assert_allclose(one.statistic, other.statistic, rtol=1e-5, atol=1e-8)
    twice = again(found, tmp_path)
    same(twice, fit)
    np.testing.assert_allclose(twice.predict(new), fit.predict(new), rtol=1e-8)


def test_arrays_weights_and_offsets(tmp_path):
    rng = np.random.default_rng(1)
    n = 60
    X, groups = rng.standard_normal((n, 3)), np.array([f"group {i}" for i in rng.integers(0, 9, n)])
    X[:, 2] = X[:, 0] + X[:, 1]
    terms = [flc.RandomTerm(X[:, :2], groups, "g", "diagonal"), flc.RandomTerm(None, rng.integers(0, 5, n), "h")]
    model = flc.LinearMixedModel(
        rng.standard_normal(n), X, terms=terms, weights=rng.uniform(1, 2, n), offset=rng.standard_normal(n)
    )
    fit = model.fit()
    found = again(fit, tmp_path)
    same(found, fit)
    assert found.dropped_columns == fit.dropped_columns == ("x2",)
    np.testing.assert_array_equal(found.model.weights, model.weights)
    rows = {"X": X[:2], "Z": {"g": X[:2, :2], "h": np.ones((2, 1))}, "groups": {"g": groups[:2], "h": [0, 1]}}
    np.testing.assert_allclose(
        found.predict(rows, effects="all", offset=[0.0, 1.0]), fit.predict(rows, effects="all", offset=[0.0, 1.0])
    )
    labels = np.array(["a", 1, None], dtype=object)
    mixed = flc.LinearMixedModel(rng.standard_normal(30), None, None, labels[rng.integers(0, 2, 30)].astype(str)).fit()
    same(again(mixed, tmp_path), mixed)


def test_stated_parameters(tmp_path):
    visits = {"patient": [1, 1, 2], "year": [0.0, 2.0, 1.0]}
    for data in (visits, visits | {"y": [1.0, 2.0, 4.0]}):
        stated = flc.assume("y ~ year + (year | patient)", data, [10.0, 1.0], [[1.0, 0.5], [0.5, 0.25]], 1.0)
        found = again(stated, tmp_path)
        same(found, stated)
        assert found.model.given
        np.testing.assert_array_equal(found.marginal_covariance(1), stated.marginal_covariance(1))
    fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
    moved = fit.at(params={"Days": 0.0})
    found = again(moved, tmp_path)
    same(found, moved)
    assert found.model.fit().criterion == pytest.approx(fit.criterion)


def test_time_stamps_and_other_indices(tmp_path):
    pd = pytest.importorskip("pandas")
    data = flc.datasets.load("sleepstudy")
    data.index = pd.date_range("2024-01-01", periods=len(data))
    data["Subject"] = pd.to_datetime(data.Subject.astype(int), unit="D")
    fit = flc.lmm("Reaction ~ Days + (1 | Subject)", data).fit()
    found = again(fit, tmp_path)
    same(found, fit)
    assert found.resid.index.equals(fit.resid.index)
    data.index = pd.MultiIndex.from_arrays([data.Days, np.arange(len(data))], names=["day", "row"])
    fit = flc.lmm("Reaction ~ Days + (1 | Subject)", data.rename_axis(["d", "row"])).fit()
    assert again(fit, tmp_path).resid.index.equals(fit.resid.index)


def test_it_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    fit = flc.lmm("Yield ~ 1 + (1 | Batch)", flc.datasets.load("dyestuff")).fit()
    path = tmp_path / "fit.flc"
    fit.save(str(path))
    before = path.read_bytes()

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(flc.LMMError, match="cannot be written: No space left"):
        fit.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["fit.flc"]


def test_what_is_no_result_is_refused(tmp_path):
    fit = flc.lmm("Yield ~ 1 + (1 | Batch)", flc.datasets.load("dyestuff")).fit()
    path = tmp_path / "fit.flc"
    with pytest.raises(flc.LMMError, match="cannot be read: No such file"):
        flc.load(path)
    with pytest.raises(flc.LMMError, match="cannot be written: No such file"):
        fit.save(tmp_path / "nowhere" / "fit.flc")
    for wrong, message in ((3, "path must be a string or a path, not 3"), ("", "path must be the name of a file")):
        with pytest.raises(flc.LMMError, match=message):
            flc.load(wrong)
    path.write_bytes(b"not a zip")
    with pytest.raises(flc.LMMError, match="is no result that save"):
        flc.load(path)
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(flc.LMMError, match="is no result that save"):
        flc.load(tmp_path / "other.npz")


def changed(path, change) -> None:
    """Rewrite a file with its document and arrays changed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    document = json.loads(members["result.json"])
    change(document, members)
    members["result.json"] = json.dumps(document).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_other_versions_and_damage(tmp_path):
    fit = flc.lmm("Yield ~ 1 + (1 | Batch)", flc.datasets.load("dyestuff")).fit()
    path = tmp_path / "fit.flc"
    for change, message in (
        (lambda document, members: document.update(version=99), "has version 99 of the format.*update it"),
        (lambda document, members: document.update(format="x"), "is no result"),
        (lambda document, members: document.pop("random"), "is damaged"),
        (lambda document, members: members.pop("exog.npy"), "is damaged"),
        (lambda document, members: members.update({"exog.npy": members["exog.npy"][:-5]}), "or it is damaged"),
        (
            lambda document, members: document["parameters"].update(criterion=1.0),
            "these estimates are not of these data",
        ),
    ):
        fit.save(path)
        changed(path, change)
        with pytest.raises(flc.LMMError, match=message):
            flc.load(path)


def test_no_code_is_run_from_a_file(tmp_path):
    fit = flc.lmm("Yield ~ 1 + (1 | Batch)", flc.datasets.load("dyestuff")).fit()
    path = tmp_path / "fit.flc"
    fit.save(path)

    def pickled(document, members):
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.array([{}], dtype=object), allow_pickle=True)
        members["exog.npy"] = buffer.getvalue()

    changed(path, pickled)
    with pytest.raises(flc.LMMError, match="allow_pickle=False"):
        flc.load(path)


def test_values():
    from fastlmm_core.archive.values import packed, unpacked

    value = {
        "a": (1, 2.5, None, True, "text"), 3: [float("inf"), -0.0], (1, "b"): {"deep": {}}, "s": frozenset({"x", "y"}),
        "n": np.float64(0.1), 2.5: np.int64(3),
    }  # fmt: skip
    found = unpacked(json.loads(json.dumps(packed(value, "it"), allow_nan=False)))
    assert found == value
    assert isinstance(found["a"], tuple)
    assert np.isnan(unpacked(packed(float("nan"), "it")))
    for array in (
        np.arange(3.0),
        np.array(["a", "bc"]),
        np.array(["a", 1, None], dtype=object),
        np.array([], dtype=object),
    ):
        back = unpacked(json.loads(json.dumps(packed(array, "it"))))
        assert back.dtype == array.dtype
        np.testing.assert_array_equal(back, array)
    with pytest.raises(flc.LMMError, match="the state holds an object of type 'object'"):
        packed([object()], "the state")


@pytest.mark.parametrize(
    "residual", ["us(visit | id)", "ar1(visit | id, by=arm)", "toeph(visit | id)", "cs(visit | id)"]
)
@pytest.mark.parametrize("random", ["", " + (x | site)"])
def test_structured_residuals(residual, random, tmp_path):
    rng = np.random.default_rng(2)
    chosen = rng.permutation(np.flatnonzero(rng.uniform(size=160) > 0.2))
    data = {"id": np.repeat(np.arange(40), 4)[chosen], "visit": np.tile(np.arange(4), 40)[chosen]}
    data |= {"x": rng.standard_normal(len(chosen)), "site": data["id"] // 5, "y": rng.standard_normal(len(chosen))}
    data["arm"] = np.where(data["id"] % 2 == 0, "a", "b")
    fit = flc.lmm("y ~ x" + random, data, residual=residual).fit()
    found = again(fit, tmp_path)
    same(found, fit)
    assert str(found.summary()) == str(fit.summary())
    np.testing.assert_allclose(list(found.df.values()), list(fit.df.values()), rtol=1e-4)
    one, other = found.residual_parameters(), fit.residual_parameters()
    for name in ("estimate", "std_error"):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-5)
    stated = fit.at(params={"x": 1.0})
    same(again(stated, tmp_path), stated)


STRUCTURES = {
    "coordinates": ("y ~ x", {"residual": "sp_exp(t | id)"}),
    "plane": ("y ~ x", {"residual": "sp_gau(t, u | id, nugget=True)"}),
    "matern": ("y ~ x + (1 | site)", {"residual": "matern(t | id)"}),
    "matern52": ("y ~ x", {"residual": "matern52(t | id)"}),
    "car1": ("y ~ x", {"residual": "car1(t | id, by=arm)", "weights": "w"}),
    "factors": ("y ~ x", {"residual": "fa(visit | id)"}),
    "products": ("y ~ x", {"residual": "us@ar1(arm, visit | id)"}),
    "power": ("y ~ x + (1 | site)", {"variance": "power(u)"}),
    "constants": ("y ~ x", {"residual": "cs(visit | id)", "variance": "constpower(u)"}),
    "groups": ("y ~ x", {"residual": "ar1(visit | id)", "variance": "exp(u, by=arm)"}),
    "formula": ("y ~ x + (1 | site)", {"variance": "~ 0 + arm"}),
    "both restricted": ("y ~ x + ar1(0 + arm | site)", {"residual": "ar1(visit | id)"}),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures_of_every_kind(name, tmp_path):
    rng = np.random.default_rng(4)
    chosen = np.sort(rng.permutation(200)[:170])
    id_, visit = np.repeat(np.arange(40), 5)[chosen], np.tile(np.arange(5), 40)[chosen]
    site, arm = id_ // 5, np.where((id_ // 3) % 2 == 0, "a", "b")
    if name == "products":
        arm, visit = np.where(visit % 2 == 0, "a", "b"), visit // 2
    if name == "both restricted":
        arm = np.where(visit % 2 == 0, "a", "b")
    data = pd.DataFrame({"id": id_, "visit": visit, "site": site, "arm": arm, "x": rng.standard_normal(170)})
    data["t"], data["u"] = np.tile(np.arange(5), 40)[chosen] * 1.3, rng.uniform(0.5, 2.0, 170)
    data["w"] = rng.uniform(0.5, 2.0, 170)
    level = rng.standard_normal((8, 2))
    data["y"] = rng.standard_normal(40)[id_] + level[site, (arm == "b") * 1] + rng.standard_normal(170) * data.u
    formula, options = STRUCTURES[name]
    fit = flc.lmm(formula, data, **options).fit()
    found = again(fit, tmp_path)
    same(found, fit)
    assert found.model.residual.strata[0].structure == fit.model.residual.strata[0].structure
    np.testing.assert_allclose(found.df, fit.df, rtol=1e-4)
    np.testing.assert_allclose(found.residuals("whitened"), fit.residuals("whitened"), rtol=1e-7, atol=1e-9)
    one, other = found.residual_parameters(), fit.residual_parameters()
    np.testing.assert_allclose(one["estimate"], other["estimate"], rtol=1e-6)
    if "variance" not in options and name != "products":
        # rows that were not observed, given those that were
        new = data.iloc[:3].assign(**({"t": data.t.iloc[:3] + 0.5} if data.dtypes.get("t") is not None else {}))
        np.testing.assert_allclose(found.predict(new, "all"), fit.predict(new, "all"), rtol=1e-6)


def test_refused(tmp_path):
    fit = flc.lmm("Reaction ~ Days", flc.datasets.load("sleepstudy"), residual="ar1(Days | Subject)").fit()
    part = fit.model.design.residual
    unknown = replace(part, strata=(replace(part.strata[0], structure=replace(part.strata[0].structure, name="own")),))
    with pytest.raises(flc.LMMError, match=r"save\(\) writes structures that names make"):
        plain_residual(unknown, {})
