"""Fits of the bundled data sets and of the references; each is made once in a process, and no test changes one."""

from __future__ import annotations

from functools import cache

import pandas as pd

import fastlmm_core as flc
import oracle

SLEEPSTUDY = "Reaction ~ Days + (Days | Subject)"


@cache
def fitted(formula: str, dataset: str, reml: bool = True) -> flc.LMMResult:
    """The fit of a formula to a bundled data set, as a pandas frame."""
    return flc.lmm(formula, flc.datasets.load(dataset)).fit(reml=reml)


@cache
def reference_model(name: str, path: str) -> flc.LinearMixedModel:
    """The model of a reference, by `path`: "formula" (lme4's formula on a pandas frame) or "arrays"."""
    ref = oracle.reference(name)
    if path == "formula":
        return flc.lmm(ref.formula, pd.DataFrame(ref.columns))
    return flc.LinearMixedModel(
        *ref.arrays, structure=ref.structure, exog_names=ref.coef_names, exog_re_names=ref.effect_names
    )


@cache
def fitted_reference(name: str, reml: bool, path: str) -> flc.LMMResult:
    """The fit of a reference; see `reference_model`."""
    return reference_model(name, path).fit(reml=reml)
