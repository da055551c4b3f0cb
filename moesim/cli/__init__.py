"""The command line: reads arguments, calls the library, prints. Nothing is computed here.

Heavy modules are imported inside commands, so that ``moesim estimate`` starts quickly.
"""

from __future__ import annotations

import sys

from moesim.cli.app import app
from moesim.errors import MoesimError

__all__ = ["app", "main"]


def main() -> None:
    """Entry point: one line and an exit code for every error a user can make."""
    import typer

    try:
        code = app(standalone_mode=False)
    except MoesimError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except typer.Abort:
        _fail("aborted", 130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        # Typer's usage errors come from whichever click it was built with, so they are known by what they can do.
        if not hasattr(error, "format_message"):
            raise
        _fail(" ".join(error.format_message().split()), 2)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    print(f"moesim: {message}", file=sys.stderr)
    sys.exit(code)
