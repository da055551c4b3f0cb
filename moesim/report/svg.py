"""matplotlib figures as small, themed, accessible and reproducible SVG."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from moesim.report.colours import css_variables, stand_in, variables

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIGURE_WIDTH_IN", "drawing", "log_axis", "standalone", "to_svg"]

FIGURE_WIDTH_IN = 8.6
_FONTS = 'system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif'
_FONT_FAMILY = re.compile(r" font-family: [^;\"]*;?")
_NEEDED_ID = re.compile(r"(?:url\(#|href=\"#)([^)\"]+)")


@contextmanager
def drawing(
    height_in: float, n_columns: int = 1, n_rows: int = 1, **kwargs: Any
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure with its axes in reading order, in the report's style, without touching matplotlib's global state."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(cast(Any, _style())), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the reader's browser has the glyph
        figure = Figure(figsize=(FIGURE_WIDTH_IN, height_in), layout="constrained")
        axes = figure.subplots(n_rows, n_columns, squeeze=False, **kwargs)
        yield figure, list(axes.flat)


def to_svg(figure: Figure, key: str, title: str, alt: str, tips: Mapping[str, str] | None = None) -> str:
    """The figure as an ``<svg>`` element for a page.

    Args:
        figure: drawn with stand-in colours.
        key: unique in the page; prefixes every id.
        title: short, read aloud first.
        alt: what the figure shows, in a sentence with numbers.
        tips: text to show over elements with this gid.
    """
    import matplotlib as mpl

    out = io.StringIO()
    with mpl.rc_context(cast(Any, _style())):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _clean(out.getvalue(), key, title, alt, tips or {})


def standalone(svg: str, style: str = "") -> str:
    """The same drawing as a file of its own, with its colours, its own dark variant, and the CSS that its marks need."""
    light, dark = css_variables()
    style = (
        f"<style>{style}svg{{{light}}}@media (prefers-color-scheme:dark){{svg{{{dark}}}}}"
        f"svg{{background:var(--paper);font-family:{_FONTS}}}</style>"
    )
    opening, rest = svg.split(">", 1)
    return f"{opening}>{style}{rest}\n"


def log_axis(axes: Axes, which: str, ticks: list[float] | None = None, labels: list[str] | None = None) -> None:
    """A logarithmic axis with plain labels; with `ticks`, exactly those."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

    from moesim.report.text import compact

    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    if ticks is not None:
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_minor_locator(FixedLocator([]))
        if labels is not None:
            axis.set_major_formatter(FuncFormatter(lambda _, i: labels[i] if i is not None and i < len(labels) else ""))
            return
    else:
        low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
        span = high / max(low, 1e-300)
        subs = (
            (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0) if span < 8 else (1.0, 2.0, 3.0, 5.0) if span < 30 else (1.0, 2.0, 5.0)
        )
        axis.set_major_locator(LogLocator(subs=subs if span < 500 else (1.0,), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    axis.set_minor_formatter(NullFormatter())


def _style() -> dict[str, Any]:
    ink, soft, rule = stand_in("ink"), stand_in("soft"), stand_in("rule")
    return {
        "svg.fonttype": "none", "text.parse_math": False,
        "svg.hashsalt": "moesim", "font.family": "DejaVu Sans", "font.size": 9.5, "text.color": ink,
        "axes.labelcolor": soft, "axes.edgecolor": rule, "axes.titlesize": 10.0, "axes.titleweight": "bold",
        "axes.titlelocation": "left", "axes.titlecolor": ink, "axes.titlepad": 8.0, "axes.spines.top": False,
        "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": rule, "grid.linewidth": 0.6,
        "xtick.color": soft, "ytick.color": soft, "xtick.labelcolor": soft, "ytick.labelcolor": soft, "xtick.labelsize": 9.0,
        "ytick.labelsize": 9.0, "xtick.major.size": 3.0, "ytick.major.size": 3.0, "xtick.minor.size": 0.0,
        "ytick.minor.size": 0.0, "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
        "legend.frameon": False, "legend.fontsize": 9.0, "legend.labelcolor": ink, "lines.linewidth": 1.8,
        "lines.markersize": 5.0, "lines.solid_capstyle": "round", "image.cmap": "viridis",
        "figure.constrained_layout.h_pad": 0.06, "figure.constrained_layout.w_pad": 0.06,
    }  # fmt: skip


def _clean(raw: str, key: str, title: str, alt: str, tips: Mapping[str, str]) -> str:
    body = raw[raw.index("<svg") :]
    box = re.search(r'viewBox="([^"]+)"', body)
    inner = body[body.index(">") + 1 : body.rindex("</svg>")]
    inner = re.sub(r"<metadata>.*?</metadata>", "", inner, flags=re.S)
    inner = re.sub(r'<defs>\s*<style type="text/css">.*?</style>\s*</defs>', "", inner, count=1, flags=re.S)
    inner = _FONT_FAMILY.sub("", inner)
    inner = re.sub(r' transform="rotate\(-0 [^)]*\)"', "", inner)
    inner = inner.replace("xlink:href", "href")
    for stand, variable in variables().items():
        inner = inner.replace(stand, variable)
    for gid, tip in tips.items():
        inner = inner.replace(f'<g id="{gid}">', f"<g><title>{html.escape(tip)}</title>")
    inner = _own_ids(inner, key)
    inner = re.sub(r' (?:d|x|y)="[^"]+"', lambda m: re.sub(r"(\d\.\d\d)\d+", r"\1", m.group(0)), inner)
    inner = re.sub(r"\n\s*", "\n", inner).strip()
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box.group(1) if box else "0 0 1 1"}" role="img" '
        f'aria-labelledby="{key}-title {key}-desc" stroke-linejoin="round">'
        f'<title id="{key}-title">{html.escape(title)}</title><desc id="{key}-desc">{html.escape(alt)}</desc>\n{inner}</svg>'
    )


def _own_ids(inner: str, key: str) -> str:
    """Drop ids that nothing refers to; prefix the others, so that figures can share a page."""
    needed = set(_NEEDED_ID.findall(inner))
    names = {name: f"{key}-{i}" for i, name in enumerate(sorted(needed))}
    inner = re.sub(r' id="([^"]+)"', lambda m: f' id="{names[m.group(1)]}"' if m.group(1) in names else "", inner)
    inner = re.sub(r"url\(#([^)]+)\)", lambda m: f"url(#{names[m.group(1)]})", inner)
    return re.sub(r'href="#([^"]+)"', lambda m: f'href="#{names[m.group(1)]}"', inner)
