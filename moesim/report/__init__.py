"""Reports: one self-contained HTML page, Markdown, figures, tables, ``results.json`` and a Perfetto trace.

Reads results and draws; computes nothing about models or hardware. Heavy libraries are imported where they are used.
"""

from __future__ import annotations

from moesim.report.write import load_result, render, write_report

__all__ = ["load_result", "render", "write_report"]
