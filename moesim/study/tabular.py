"""Results that show themselves: as a pandas table, and as an HTML table in a notebook."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Row", "Tabular", "html_table"]

Row = dict[str, Any]
MOST_HTML_ROWS = 60


class Tabular:
    """A result with rows: `to_frame` for analysis, `_repr_html_` for notebooks; pandas is imported when a frame is asked for."""

    __slots__ = ()

    def rows(self) -> list[Row]:
        """The rows of the table; units are in the keys."""
        raise NotImplementedError

    def to_frame(self) -> pd.DataFrame:
        """The rows as a pandas table."""
        import pandas as pd

        return pd.DataFrame(self.rows())

    def _repr_html_(self) -> str:
        return html_table(self.rows())


def html_table(rows: list[Row], caption: str = "") -> str:
    """An HTML table of rows with equal keys; every text escaped, long tables cut with a word about it."""
    if not rows:
        return f"<p>{escape(caption)} (no rows)</p>"
    keys = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th>{escape(key)}</th>" for key in keys)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_text(row.get(key)))}</td>" for key in keys) + "</tr>"
        for row in rows[:MOST_HTML_ROWS]
    )
    more = f"<p>{len(rows) - MOST_HTML_ROWS} more rows; see to_frame()</p>" if len(rows) > MOST_HTML_ROWS else ""
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e6 else f"{value:.4e}"
    return str(value)
