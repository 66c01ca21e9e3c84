"""Several tests of each of many responses: hypotheses by name, and one for each term of the fixed part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from ...errors import LMMError
from ...support.arguments import checked
from ...support.display import Cells, Shown
from ...support.types import Array
from ...tables.columns import native_frame
from ..anova import TYPES, hypotheses
from ..hypotheses import Hypothesis, parse_hypothesis
from .tests import BatchTest, tests

if TYPE_CHECKING:
    from ...estimation.fit import Fit
    from ...estimation.many.batch_fit import BatchFit

__all__ = ["BatchTests", "anova", "parse_several", "several", "term_hypotheses"]


@checked
class BatchTests(Mapping[str, BatchTest], Shown):
    """Tests of many responses by name; a mapping from names to `BatchTest`, in the order in which they were asked for.

    Attributes
    ----------
    notes : tuple of str
        What could not be tested, and why.
    """

    def __init__(
        self, tests: Mapping[str, BatchTest], labels: NDArray[Any], library: str, notes: tuple[str, ...] = (),
        one: str = "response",
    ) -> None:  # fmt: skip
        self._tests, self._labels, self._library, self.notes, self._one = dict(tests), labels, library, notes, one

    def __getitem__(self, name: str) -> BatchTest:
        if name not in self._tests:
            raise KeyError(f"there is no test {name!r}: the tests are {', '.join(map(repr, self._tests))}")
        return self._tests[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tests)

    def __len__(self) -> int:
        return len(self._tests)

    @property
    def pvalues(self) -> Array:
        """(n_responses, n_tests)."""
        return np.array([test.pvalues for test in self.values()]).T.reshape(len(self._labels), len(self))

    @property
    def log10p(self) -> Array:
        """log10 of the p-values (n_responses, n_tests), however small they are."""
        return np.array([test.log10p for test in self.values()]).T.reshape(len(self._labels), len(self))

    def fdr(self, method: str = "bh") -> Array:
        """p-values adjusted for the number of responses, test by test (n_responses, n_tests); see `BatchTest.fdr`."""
        found = np.array([test.fdr(method) for test in self.values()])
        return found.T.reshape(len(self._labels), len(self))

    def to_frame(self) -> Any:
        """One row per response and test.

        Returns
        -------
        frame in the library of the model's data, or dict of arrays
            response (its label or position), test, df_num, df_denom, statistic (F, or chi-square / df_num for
            ddf="normal"), p_value, fdr (by "bh", within each test).
        """
        n, k = len(self._labels), len(self)
        df = np.array([test.df_denom for test in self.values()]).T.reshape(n, k)
        F = np.array([_f(test) for test in self.values()]).T.reshape(n, k)
        return native_frame(
            self._library,
            {
                self._one: np.repeat(self._labels, k), "test": list(self) * n,
                "df_num": np.tile([test.df_num for test in self.values()], n), "df_denom": df.ravel(),
                "statistic": F.ravel(), "p_value": self.pvalues.ravel(), "fdr": self.fdr().ravel(),
            },
        )  # fmt: skip

    def _shown(self) -> Iterator[str | Cells]:
        yield f"Tests of {len(self._labels)} responses"
        rows = [
            [name, str(test.df_num), str(int((test.pvalues < 0.05).sum())), str(int((test.fdr() < 0.05).sum()))]
            for name, test in self.items()
        ]
        yield Cells(["", "df", "p < 0.05", "fdr < 0.05"], rows)
        yield from self.notes

    def __repr__(self) -> str:
        return f"<BatchTests: {', '.join(self)}; {len(self._labels)} responses>"


def _f(test: BatchTest) -> Array:
    if len(test.L) == 1:
        return test.statistic**2
    return test.statistic / test.df_num if test.ddf == "normal" else test.statistic


def parse_several(asked: Any, names: tuple[str, ...]) -> dict[str, Hypothesis]:
    """Hypotheses by name.

    Raises
    ------
    LMMError
        For anything but a mapping, and hypotheses that are none.
    """
    if not isinstance(asked, Mapping) or not asked:
        raise LMMError(
            "hypotheses must be names to hypotheses, e.g. {'slope': 'Days', 'both': ['Days', 'age']}, not "
            f"{asked!r:.60}; one hypothesis is tested by test()"
        )
    return {str(name): parse_hypothesis(one, names) for name, one in asked.items()}


def response_labels(batch: BatchFit) -> NDArray[Any]:
    """Labels of the responses, or their positions."""
    return np.arange(len(batch)) if batch.labels is None else batch.labels


def several(
    batch: BatchFit, asked: Mapping[str, Any], ddf: str, information: str, vcov: str = "model", cluster: Any = None
) -> BatchTests:
    """See `BatchResult.tests`."""
    parsed = parse_several(asked, batch.model.exog_names)
    found = tests(batch, list(parsed.values()), ddf, information, vcov, cluster)
    return BatchTests(dict(zip(parsed, found, strict=True)), response_labels(batch), batch.model.library)


def term_hypotheses(found: Mapping[str, Array]) -> dict[str, Hypothesis]:
    """That the contrasts of each term are zero; without the terms that have none."""
    return {
        term: Hypothesis(L, np.zeros(len(L)), tuple(f"{term}[{i}]" for i in range(len(L))))
        for term, L in found.items()
        if len(L)
    }


def anova(batch: BatchFit, type: str, ddf: str, information: str) -> BatchTests:
    """See `BatchResult.anova`."""
    kind = TYPES.get(str(type), type)
    if kind not in TYPES.values():
        raise LMMError(f"type={type!r} is unknown: use 'I', 'II' or 'III'")
    # the hypotheses are those of the design
    found, notes = hypotheses(cast("Fit", batch), kind)
    parsed = term_hypotheses(found)
    done = tests(batch, list(parsed.values()), ddf, information)
    return BatchTests(dict(zip(parsed, done, strict=True)), response_labels(batch), batch.model.library, notes)
