"""The members of a fit by what one wants of it: rows of the table in ``api.md`` as sections of its page."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path

import fastlmm_core

__all__ = ["headings"]

API = Path(__file__).parents[1] / "api.md"


def headings() -> list[tuple[str, list[tuple[str, str]]]]:
    """Heading, and the directive and name of each member below it.

    Raises
    ------
    LookupError
        For a name that a fit does not have.
    """
    found = []
    for title, cells in re.findall(
        r"^\| ([^|`]+) \| (.*LMMResult.*) \|$", API.read_text(encoding="utf-8"), re.MULTILINE
    ):
        members = []
        for name in re.findall(r"~LMMResult\.(\w+)", cells):
            member = getattr(fastlmm_core.LMMResult, name, None)
            if member is None:
                raise LookupError(f"{title!r} of api.md has {name!r}, and a fit has no such member")
            members.append(("autoattribute" if isinstance(member, property | cached_property) else "automethod", name))
        found.append((title.strip(), members))
    return found
