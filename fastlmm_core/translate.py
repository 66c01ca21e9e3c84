"""Translate modules from Cython to C, all in one process.

    translate.py DEPFILE --modules NAME ... --sources FILE ... --outputs FILE ... -- OPTION ...

A process for each starts anew, reads the same declarations again, and looks through its syntax trees for garbage for
half of its time: that takes almost four times as long.  Modules whose sources are older than their C are left alone,
and with them what was compiled from it.  OPTIONs are those of the command `cython`.
"""

import argparse
import gc
import os
import re
import sys
from pathlib import Path

from Cython import __version__
from Cython.Compiler.CmdLine import parse_command_line
from Cython.Compiler.Main import compile

BETWEEN_COLLECTIONS = 200_000
"""Objects: with Python's 700 collections take half of the time, with none all modules take a third more memory."""


def dependencies(output: Path) -> list[str] | None:
    """What Cython read for a module when it was translated last, as make writes it; None if it never was."""
    listed = output.with_name(output.name + ".dep")
    if not (output.exists() and listed.exists()):
        return None
    return re.findall(r"(?:\\ |[^\s\\])+", listed.read_text(encoding="utf-8").partition(": ")[2])


def is_fresh(output: Path) -> bool:
    """Whether nothing that the module was translated from has changed."""
    read = [Path(name.replace("\\ ", " ")) for name in dependencies(output) or []]
    made = output.stat().st_mtime_ns if read else 0
    return bool(read) and all(path.exists() and path.stat().st_mtime_ns < made for path in read)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("depfile", type=Path)
    for name in ("--modules", "--sources", "--outputs"):
        parser.add_argument(name, nargs="+", required=True)
    end = sys.argv.index("--")
    asked, options = parser.parse_args(sys.argv[1:end]), sys.argv[end + 1 :]
    outputs = [Path(name) for name in asked.outputs]

    gc.set_threshold(BETWEEN_COLLECTIONS)
    how = asked.depfile.with_suffix(".txt")
    command = "\n".join([__version__, *options])
    same = how.exists() and how.read_text(encoding="utf-8") == command
    how.unlink(missing_ok=True)  # until all are translated
    for module, source, output in zip(asked.modules, asked.sources, outputs, strict=True):
        if same and is_fresh(output):
            continue
        parsed, sources = parse_command_line(["-M", *options, "--module-name", module, source, "-o", str(output)])
        if compile(sources, parsed).num_errors:
            output.unlink(missing_ok=True)
            return 1
    how.write_text(command, encoding="utf-8")
    read = sorted({name for output in outputs for name in dependencies(output) or []})
    asked.depfile.write_text(f"{asked.outputs[0]}: {' '.join(read)}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # freeing all trees one by one takes a fifth of the time again
