"""Designs with several grouping factors, and the covariance of their rows by dense matrices."""

from __future__ import annotations

import numpy as np

import fastlmm_core as flc
from fastlmm_core import RandomTerm

EXACT = 1e-9
KINDS = ["nested", "crossed", "mixed", "apart", "three"]


def close(actual, desired, tolerance=EXACT):
    desired = np.asarray(desired, dtype=float)
    scale = max(1.0, np.max(np.abs(desired), initial=0.0))
    np.testing.assert_allclose(np.asarray(actual, dtype=float), desired, rtol=0.0, atol=tolerance * scale)


class Study:
    """Rows with several grouping factors: terms of one or two columns, labels of different kinds of design."""

    def __init__(self, rng, kind, weighted=False, n=150):
        site = rng.integers(0, 5, n)
        t = rng.uniform(-1.0, 2.0, n)
        line = np.column_stack([np.ones(n), t])
        one = np.ones((n, 1))
        if kind == "nested":
            inner = site * 10 + rng.integers(0, 4, n)
            self.terms = {"class": (line, inner), "school": (line, site)}
        elif kind == "crossed":
            self.terms = {"a": (line, rng.integers(0, 20, n)), "b": (one, rng.integers(0, 8, n))}
        elif kind == "mixed":
            inner = site * 10 + rng.integers(0, 4, n)
            self.terms = {"class": (one, inner), "school": (line, site), "item": (line, rng.integers(0, 6, n))}
        elif kind == "apart":
            # crossed within sites: the second factor falls apart into components of different sizes
            size = np.array([3, 3, 4, 5, 5])[site]
            self.terms = {
                "a": (one, site * 100 + rng.integers(0, 6, n)),
                "b": (line, site * 100 + (rng.uniform(size=n) * size).astype(int)),
            }
        else:
            self.terms = {
                "a": (one, rng.integers(0, 15, n)),
                "b": (line, rng.integers(0, 7, n)),
                "c": (one, rng.integers(0, 5, n)),
            }
        self.X = np.column_stack([np.ones(n), t, rng.standard_normal(n)])
        self.w = rng.uniform(0.3, 3.0, n) if weighted else None
        self.offset = rng.normal(0.0, 10.0, n) if weighted else None
        y = 2.0 + 0.7 * t + rng.standard_normal(n) / (1.0 if self.w is None else np.sqrt(self.w))
        for Z, labels in self.terms.values():
            b = rng.standard_normal((1000, Z.shape[1])) * [1.2, 0.7][: Z.shape[1]]
            y = y + np.sum(Z * b[labels], axis=1)
        self.y = y if self.offset is None else y + self.offset

    def part(self, rows):
        out = {
            "X": self.X[rows],
            "y": self.y[rows],
            "Z": {name: Z[rows] for name, (Z, _) in self.terms.items()},
            "groups": {name: labels[rows] for name, (_, labels) in self.terms.items()},
        }
        if self.w is not None:
            out |= {"weights": self.w[rows], "offset": self.offset[rows]}
        return out

    def model(self, rows):
        d = self.part(rows)
        terms = [RandomTerm(d["Z"][name], d["groups"][name], name=name) for name in self.terms]
        return flc.LinearMixedModel(d["y"], d["X"], terms=terms, weights=d.get("weights"), offset=d.get("offset"))


def blocks(result):
    return {f.grouping.name: result.covariance[f.columns, f.columns] for f in result.model.factors}


def covariance(result, a, b, names=None):
    """Covariance of the random parts of rows a and b, of the factors named."""
    out = np.zeros((len(a["X"]), len(b["X"])))
    for name, G in blocks(result).items():
        if names is None or name in names:
            same = np.asarray(a["groups"][name])[:, None] == np.asarray(b["groups"][name])
            out = out + same * (a["Z"][name] @ G @ b["Z"][name].T)
    return out


def noise(result, rows):
    return result.sigma2 / rows.get("weights", np.ones(len(rows["X"])))
