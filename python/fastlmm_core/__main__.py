"""Fits from the command line: ``python -m fastlmm_core fit data.csv "y ~ x + (x | g)"``, or ``flmm fit ...``.

Exit status: 0 for a certified fit, 1 for one that could not be certified, 2 for input that cannot be fitted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from .commands.parser import parser
from .commands.run import demo, run
from .errors import LMMError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the name of the program; by default those of the process.  Without any the built-in example
        is fitted.

    Returns
    -------
    int
        0 for a certified fit, 1 for one that could not be certified, 2 for input that cannot be fitted.
    """
    options = parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names of columns need not exist in the terminal's encoding
    try:
        return demo() if options.command is None else run(options)
    except LMMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # the reader, such as `head`, has seen enough; what is still buffered must not raise at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
