"""Formulas as MathML, which browsers draw themselves: pages need no script and no network.

An extension of Sphinx: ``extensions = ["mathml"]`` in place of ``sphinx.ext.mathjax``.
"""

from __future__ import annotations

import re
from typing import Any

from latex2mathml.converter import convert

# environments of amsmath that the converter knows by another name
_ENVIRONMENTS = {"aligned": "split", "gathered": "split", "equation": "", "equation*": ""}


def mathml(latex: str, block: bool) -> str:
    """A formula as an element of HTML.

    Raises
    ------
    ValueError
        For a command that the converter does not know: it would stand on the page as it is.
    """
    for name, other in _ENVIRONMENTS.items():
        for end in ("begin", "end"):
            latex = latex.replace(f"\\{end}{{{name}}}", f"\\{end}{{{other}}}" if other else "")
    if block and re.search(r"(?<!\\)\\\\", latex) and "\\begin" not in latex:
        latex = f"\\begin{{split}}{latex}\\end{{split}}"
    found = str(convert(latex.strip(), display="block" if block else "inline"))
    unknown = re.search(r"\\[A-Za-z]+|(?<=>)&(?=<)", found)
    if unknown:
        raise ValueError(f"{unknown[0]} of the formula {latex!r} is not known; write it otherwise")
    return found


def _inline(self: Any, node: Any) -> None:
    from docutils import nodes

    self.body.append(mathml(node.astext(), False))
    raise nodes.SkipNode


def _block(self: Any, node: Any) -> None:
    from docutils import nodes

    self.body.append(self.starttag(node, "div", CLASS="math"))
    self.body.append(mathml(node.astext(), True) + "</div>\n")
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True}
