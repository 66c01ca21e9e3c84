"""Models side by side, and the protocol of maketables."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
import fits
import oracle


@pytest.fixture(scope="module")
def pair():
    return fits.fitted("Reaction ~ Days + (1 | Subject)", "sleepstudy"), fits.fitted(fits.SLEEPSTUDY, "sleepstudy")


def cells(table):
    """Rows of the Markdown table by their first cell; what stands below a coefficient by its name and a prime."""
    found, last = {}, ""
    for line in table.as_markdown().splitlines():
        if not line.startswith("|") or "---" in line:
            continue
        name, *row = [c.strip().replace("\\", "") for c in re.split(r"(?<!\\)\|", line)[1:-1]]
        last, key = (name, name) if name else (last, f"{last}'")
        found[key] = row
    return found


def test_cells(pair):
    found = cells(flc.table(*pair, names=["a", "b"]))
    assert found["Days"] == ["10.467", "10.47"]
    assert found["Days'"] == ["(0.804)", "(1.55)"]
    assert found["Subject: SD Days"] == ["", "5.922"]
    assert found["Subject: Cor Intercept, Days"] == ["", "0.066"]
    assert found["Residual SD"] == ["30.99", "25.59"]
    assert found["Observations"] == ["180", "180"] and found["Groups (Subject)"] == ["18", "18"]
    for name, value in (("ICC", [r.icc() for r in pair]), ("R2 conditional", [r.r2()["conditional"] for r in pair])):
        np.testing.assert_allclose(np.array(found[name], dtype=float), value, atol=5.1e-4)
    np.testing.assert_allclose(np.array(found["AIC"], dtype=float), [r.aic for r in pair], atol=0.051)
    order = list(found)
    assert order.index("Residual SD") < order.index("Response") < order.index("AIC")


def test_styles(pair):
    tidy = pair[1].tidy(vcov="CR2")
    low, high = tidy.conf_low[1], tidy.conf_high[1]
    found = cells(flc.table(*pair, style="interval", vcov="CR2"))
    assert found["Days'"][1] == f"[{low:.2f}, {high:.2f}]"
    assert cells(flc.table(*pair, style="statistic"))["Days'"][1] == f"({pair[1].tvalues['Days']:.2f})"
    assert cells(flc.table(*pair, style="p_value"))["Days'"] == ["(<0.001)", "(<0.001)"]
    text = str(flc.table(*pair, style="interval", vcov="CR2", level=0.9))
    assert "90% intervals in brackets; robust covariance CR2 over 18 clusters (Subject)" in text


def test_text_is_aligned(pair):
    lines = str(flc.table(*pair)).splitlines()
    above, below = lines[4], lines[5]
    assert above.rstrip().endswith("10.47") and below.endswith("(1.55)")
    assert above.rindex("7") == below.rindex("5")


def test_frame(pair):
    frame = flc.table(*pair, names=["a", "b"]).to_frame()
    own = pair[1].tidy()
    rows = frame[(frame.model == "b") & (frame.group == "fixed")]
    assert list(rows.term) == list(own.term)
    np.testing.assert_array_equal(rows.conf_high, own.conf_high)
    random = frame[(frame.model == "b") & (frame.group == "random")].set_index("term").estimate
    np.testing.assert_allclose(random["Residual SD"], pair[1].sigma)
    np.testing.assert_allclose(random["Subject: SD Days"], pair[1].random_effects_sd["Subject"][1])


def test_notes_warn_of_what_cannot_be_compared(pair):
    null = fits.fitted("Reaction ~ 1 + (1 | Subject)", "sleepstudy")
    pastes = fits.fitted("strength ~ 1 + (1 | batch/cask)", "pastes")
    zero = fits.fitted("Yield ~ 1 + (1 | Batch)", "dyestuff2")
    assert not [note for note in flc.table(*pair).notes if "comparable" in note]
    assert any("same fixed effects only" in note for note in flc.table(*pair, null).notes)
    table = flc.table(null, pastes, zero)
    assert any("different rows" in note for note in table.notes)
    assert any(note == "Singular: (3), sd of Intercept | Batch is 0." for note in table.notes)
    # groups and correlations of one model only leave the others empty
    assert cells(table)["ICC (batch)"] == ["", f"{pastes.icc()['batch']:.3f}", ""]


def test_pooled_fits_and_fits_by_maximum_likelihood(pair):
    pooled = flc.pool([pair[1]] * 3)
    found = cells(flc.table(pair[1].model.fit(reml=False), pooled))
    assert found["Estimation"] == ["ML", "REML"] and found["Imputations"] == ["", "3"]
    assert found["Days"][1] == "10.47" and found["Residual SD"][1] == ""


def test_what_is_refused(pair):
    with pytest.raises(flc.LMMError, match="at least one fit"):
        flc.table()
    with pytest.raises(flc.LMMError, match="names must be 2 different ones"):
        flc.table(*pair, names=["a", "a"])
    with pytest.raises(flc.LMMError, match="model 2 is of type 'int'"):
        flc.table(pair[0], 3)
    with pytest.raises(flc.LMMError, match="style='stars' is unknown"):
        flc.table(*pair, style="stars")


def test_great_tables(pair, monkeypatch):
    class GT:
        def __init__(self, frame, rowname_col, groupname_col):
            self.frame, self.columns, self.notes = frame, (rowname_col, groupname_col), []

        def tab_source_note(self, note):
            self.notes.append(note)
            return self

    monkeypatch.setitem(sys.modules, "great_tables", SimpleNamespace(GT=GT))
    table = flc.table(*pair, names=["a", "b"])
    made = table.as_gt()
    assert list(made.frame.columns) == ["group", "term", "a", "b"] and made.columns == ("term", "group")
    assert list(made.frame.group.unique()) == ["Fixed effects", "Random effects", "Fit"]
    assert made.notes == list(table.notes)


def test_maketables(pair):
    """The protocol, of a summary and of a fit (PLUGIN_EXTRACTOR_FORMAT of maketables 0.2)."""
    for model, own in ((pair[1].summary(vcov="CR2"), pair[1].tidy(vcov="CR2")), (pair[1], pair[1].tidy())):
        frame = model.__maketables_coef_table__
        assert frame.index.name == "Coefficient" and list(frame.index) == list(own.term)
        for short, name in (("b", "estimate"), ("se", "std_error"), ("t", "statistic"), ("p", "p_value"),
                            ("ci95l", "conf_low"), ("ci95u", "conf_high")):  # fmt: skip
            np.testing.assert_allclose(frame[short], own[name])
        assert model.__maketables_depvar__ == "Reaction"
        assert model.__maketables_stat__("N") == 180 and model.__maketables_stat__("groups") == "18 (Subject)"
        np.testing.assert_allclose(model.__maketables_stat__("icc"), pair[1].icc())
        assert model.__maketables_stat__("no such") is None
    summary = pair[1].summary(vcov="CR2")
    assert summary.__maketables_stat__("se_type") == "CR2, 18 clusters (Subject)"
    assert set(summary.__maketables_default_stat_keys__) <= set(summary.__maketables_stat_labels__)


def test_a_known_residual_variance_is_said_to_be():
    data = flc.datasets.load("sleepstudy")
    known = flc.lmm(fits.SLEEPSTUDY, data, sigma=25.0).fit()
    smaller = flc.lmm("Reaction ~ 1 + (Days | Subject)", data, sigma=25.0).fit(reml=False)
    table = flc.table(known, smaller, fits.fitted(fits.SLEEPSTUDY, "sleepstudy"))
    assert cells(table)["Residual SD"] == ["25 (known)", "25 (known)", "25.59"]
    assert "25 (known) &" in table.as_latex()
    assert "Criteria by REML and by ML are not comparable." in table.notes
    assert "that of the residual is known and was held at 25." in known.report()


def test_models_of_other_responses_are_told_apart():
    data = flc.datasets.load("sleepstudy")
    logged = flc.lmm("log(Reaction) ~ Days + (Days | Subject)", data).fit()
    table = flc.table(fits.fitted(fits.SLEEPSTUDY, "sleepstudy"), logged)
    assert "Models of different responses: their criteria are not comparable." in table.notes
    assert not any("REML and by ML" in note for note in table.notes)


def test_structured_residuals():
    data = pd.read_csv(oracle.REFERENCE / "data" / "fev_full.csv")
    us = flc.lmm("FEV1 ~ ARMCD * AVISIT", data, residual="us(AVISIT | USUBJID)").fit()
    ar1 = flc.lmm("FEV1 ~ ARMCD * AVISIT", data, residual="ar1(AVISIT | USUBJID)").fit()
    table = flc.table(us, ar1, vcov="CR2")
    found = cells(table)
    assert found["Residuals"] == ["us(AVISIT | USUBJID)", "ar1(AVISIT | USUBJID)"]
    # ten variances and covariances are not for a table of models
    assert "Residual SD" not in found and [name for name in found if "rho" in name]
    rho = next(row for name, row in found.items() if "rho" in name)
    own = ar1.residual_parameters().set_index("term").estimate
    assert rho == ["", f"{own[own.index.str.contains('rho')].iloc[0]:.4g}"]
    text, other = us.report(), ar1.report()
    assert "and residuals of the structure us(AVISIT | USUBJID)" in text and "that of the residual" not in text
    assert "Parameters of the residuals were" in other and "Parameters of the residuals were" not in text
    assert "for ARMCD[T.TRT], SE" in text
