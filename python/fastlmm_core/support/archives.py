"""A zip archive of one JSON document, ``result.json``, and arrays in numpy's format, ``NAME.npy``."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError

__all__ = ["read_archive", "write_archive"]

DOCUMENT = "result.json"


def write_archive(
    path: str | os.PathLike[str], document: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> None:
    """Write an archive; one that is there is replaced once the new one is complete.

    Raises
    ------
    LMMError
        Where the file cannot be written.
    """
    target = _path(path)
    partial = target.with_name(target.name + ".partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(DOCUMENT, json.dumps(document, indent=1, allow_nan=False))
            for name, values in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(values), allow_pickle=False)
        partial.replace(target)
    except OSError as error:
        raise LMMError(f"path: {str(target)!r} cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _path(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise LMMError(f"path must be the name of a file, not {path!r}")
    return Path(path)


def read_archive(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The document and the arrays of an archive.

    Raises
    ------
    LMMError
        Where there is no such file, or it is something else or damaged.
    """
    source = _path(path)
    shown = str(source)
    try:
        with zipfile.ZipFile(source) as archive:
            document = json.loads(archive.read(DOCUMENT))
            names = [name for name in archive.namelist() if name.endswith(".npy")]
            arrays = {
                name.removesuffix(".npy"): np.lib.format.read_array(io.BytesIO(archive.read(name)), allow_pickle=False)
                for name in names
            }
    except OSError as error:
        raise LMMError(f"path: {shown!r} cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise LMMError(f"path: {shown!r} is no result that save() has written, or it is damaged: {error}") from error
    if not isinstance(document, dict):
        raise LMMError(f"path: {shown!r} is no result that save() has written")
    return document, arrays
