"""What the library's own Python text imports, parsed once for all tests that ask."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import NamedTuple


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


class Read(NamedTuple):
    """What tests ask of a file: whole trees would be some hundred megabytes."""

    imports: list[ast.Import | ast.ImportFrom]
    names: set[str]
    private: list[ast.Attribute]


@cache
def read(path: Path) -> Read:
    """Import statements anywhere in a file; what it defines (functions, classes, variables, fields, attributes that it
    sets); attributes whose name begins with one underscore.
    """
    imports, names, private = [], set(), []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports.append(node)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            if isinstance(node.ctx, ast.Store):
                names.add(node.attr)
            if node.attr.startswith("_") and not node.attr.startswith("__"):
                private.append(node)
    return Read(imports, names, private)


def imports(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """Import statements anywhere in a file."""
    return read(path).imports
