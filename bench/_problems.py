"""The data of the benchmarks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

SLEEPSTUDY_FORMULA = "Reaction ~ Days + (Days | Subject)"
SLEEPSTUDY_REML = 1743.62827195849  # lme4 1.1-31


@dataclass(frozen=True)
class Arrays:
    """A random-slope problem as arrays; the columns of x and z are 1 and the time."""

    y: np.ndarray
    x: np.ndarray
    z: np.ndarray
    codes: np.ndarray

    @property
    def nbytes(self) -> int:
        shared = self.z is self.x
        return self.y.nbytes + self.x.nbytes + self.codes.nbytes + (0 if shared else self.z.nbytes)

    def frame(self, labels: str = "integer") -> pd.DataFrame:
        """The same as a pandas frame with columns y, t, g."""
        groups = self.codes if labels == "integer" else np.char.add("subject", self.codes.astype(str))
        return pd.DataFrame({"y": self.y, "t": self.x[:, 1].copy(), "g": groups})


def sleepstudy_frame() -> pd.DataFrame:
    """Reaction, Days and Subject (text) of lme4's sleepstudy."""
    import fastlmm_core as flc

    return flc.datasets.load("sleepstudy")


def sleepstudy_arrays() -> Arrays:
    data = sleepstudy_frame()
    x = np.column_stack([np.ones(len(data)), data["Days"].to_numpy(float)])
    codes = np.unique(data["Subject"].to_numpy(dtype=str), return_inverse=True)[1]
    return Arrays(data["Reaction"].to_numpy(copy=True), x, x.copy(), codes)


def growth(groups: int, per_group: int = 10, times: str = "shared", seed: int = 1) -> Arrays:
    """Lines with a random intercept and slope; times 0..per_group-1 ("shared") or each subject's own ("own")."""
    rng = np.random.default_rng(seed)
    n = groups * per_group
    codes = np.repeat(np.arange(groups), per_group)
    t = np.tile(np.arange(float(per_group)), groups) if times == "shared" else rng.uniform(0.0, per_group - 1.0, n)
    b = rng.standard_normal((groups, 2)) @ np.array([[25.0, 0.5], [0.0, 6.0]])
    y = 250.0 + 10.0 * t + b[codes, 0] + b[codes, 1] * t + 25.0 * rng.standard_normal(n)
    x = np.column_stack([np.ones(n), t])
    return Arrays(y, x, x, codes)
