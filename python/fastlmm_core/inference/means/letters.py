"""Compact letters: means that share one are not shown to differ (Piepho 2004, J. Comput. Graph. Stat. 13, 456-466)."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["compact_letters"]


def compact_letters(k: int, different: Iterable[tuple[int, int]]) -> list[str]:
    """Letters of k means, of which two share one exactly where they do not differ.

    Parameters
    ----------
    k : int
    different : iterable of pairs of int
        Means that differ. The first letters go to the first means.

    Returns
    -------
    list of str

    Examples
    --------
    >>> from fastlmm_core.inference.means.letters import compact_letters
    >>> compact_letters(3, [(0, 2)])
    ['a', 'ab', 'b']
    """
    groups: list[frozenset[int]] = [frozenset(range(k))]
    for i, j in different:
        # a group with both splits in two, of which those within another group are left out
        split = [part for g in groups for part in ((g - {i}, g - {j}) if i in g and j in g else (g,))]
        unique = list(dict.fromkeys(split))
        groups = [g for g in unique if not any(g < other for other in unique)]
    groups.sort(key=sorted)
    return ["".join(_letter(at) for at, g in enumerate(groups) if mean in g) for mean in range(k)]


def _letter(at: int) -> str:
    """a to z, A to Z, then a2 and so on."""
    turn, rest = divmod(at, 52)
    letter = chr(ord("a") + rest) if rest < 26 else chr(ord("A") + rest - 26)
    return letter + (str(turn + 1) if turn else "")
