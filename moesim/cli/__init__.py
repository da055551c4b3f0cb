"""The command line: reads arguments, calls the library, prints. Nothing is computed here.

Heavy modules are imported inside commands, so that ``moesim estimate`` starts quickly.
"""

from __future__ import annotations

import gc
import os
import sys

from moesim.errors import MoesimError

__all__ = ["main"]


def main() -> None:
    """Entry point: one line and an exit code for every error a user can make."""
    _start_quickly()
    import typer

    from moesim.cli.app import app

    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except MoesimError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except typer.Abort:
        _fail("aborted", 130)
    except BrokenPipeError:
        # The reader (head, less) has what it wanted; nothing more can be flushed to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        # Typer's usage errors come from whichever click it was built with, so they are known by what they can do.
        if not hasattr(error, "format_message"):
            raise
        _fail(_usage(error, error.format_message()), 2)
    sys.exit(code if isinstance(code, int) else 0)


def _start_quickly() -> None:
    """Skip what would take a tenth of a cold `moesim estimate`.

    That is collecting garbage among modules that live to the end, and looking through all installed packages for plugins of
    pydantic.
    """
    gc.set_threshold(50_000, 20, 20)
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")


def _usage(error: Exception, message: str) -> str:
    """A usage error in one line, with the value that was given (not every version of typer tells it)."""
    text = " ".join(message.split()).replace("Input should be", "must be")
    for option in getattr(getattr(error, "param", None), "opts", ()):
        for i, word in enumerate(sys.argv):
            given = word.partition("=")[2] if word.startswith(f"{option}=") else None
            given = sys.argv[i + 1] if word == option and i + 1 < len(sys.argv) else given
            if given is not None and repr(given) not in text:
                text += f" (got {given[:80]!r})"
    return text


def _fail(message: str, code: int) -> None:
    print(f"moesim: {message}", file=sys.stderr)
    sys.exit(code)
