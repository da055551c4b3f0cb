"""Exit codes, and how every page of help tells them."""

from __future__ import annotations

__all__ = ["EXIT_CODES", "FAULT", "INTERRUPTED", "UNWRITTEN", "USAGE"]

UNWRITTEN, USAGE, INTERRUPTED = 1, 2, 130
#: A fault of moesim itself (EX_SOFTWARE).
FAULT = 70

#: The backspace keeps click from filling the lines.
EXIT_CODES = f"""\b
Exit codes: 0 answered (that something does not fit, that no plan meets the
goals and that a queue grows are answers: see the outcome); {UNWRITTEN} output
cannot be written; {USAGE} bad input; {FAULT} a fault of moesim; {INTERRUPTED} interrupted."""
