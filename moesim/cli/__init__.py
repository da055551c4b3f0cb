"""The command line: reads arguments, calls the library, prints. Nothing is computed here.

Heavy modules are imported inside commands, so that ``moesim estimate`` starts quickly.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys

from moesim.cli.exits import FAULT, INTERRUPTED, UNWRITTEN, USAGE
from moesim.errors import MoesimError

__all__ = ["main"]


#: The variable that shows the traceback of a fault.
SHOW_TRACEBACK = "MOESIM_TRACEBACK"


def main() -> None:
    """Entry point: one line and an exit code for every error a user can make."""
    _start_quickly()
    try:
        code = _run()
    except MoesimError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        code = 0
    except SystemExit as stopped:
        # Typer and rich turn a reader that has gone (head, less) into this.
        if not isinstance(stopped.__context__, BrokenPipeError):
            raise
        _drop_output()
        code = 0
    except OSError as error:
        _drop_output()
        _fail(f"{error.filename or 'output'}: {error.strerror or error}", UNWRITTEN)
    except Exception as error:
        # Typer's errors come from whichever click it was built with, so they are known by name and by what they can do.
        if type(error).__name__ == "Abort":
            code = INTERRUPTED
        elif hasattr(error, "format_message"):
            _fail(_usage(error, error.format_message()), USAGE)
        elif os.environ.get(SHOW_TRACEBACK):
            raise
        else:
            _fail(_fault(error), FAULT)
    if code == INTERRUPTED:
        _fail("interrupted", INTERRUPTED)
    sys.exit(code)


def _fault(error: Exception) -> str:
    """One line about an error that no input should cause; the traceback goes to a file for a report."""
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="moesim-fault-", suffix=".log", delete=False, encoding="utf-8") as log:
        log.write(f"{sys.argv}\n{''.join(traceback.format_exception(error))}")
    text = " ".join(str(error).split())[:200]
    return f"a fault of moesim, not of your input: {type(error).__name__}: {text}; please report it with {log.name}"


def _run() -> int:
    from moesim.cli.app import app

    code = app(standalone_mode=False)
    sys.stdout.flush()
    return code if isinstance(code, int) else 0


def _drop_output() -> None:
    """Let nothing more be flushed to an output that does not take it."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
