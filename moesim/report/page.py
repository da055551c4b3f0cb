"""The report as one HTML file that needs nothing else: no network, no fonts, no scripts from elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesim.report.cases import Cases
from moesim.report.colours import css_variables
from moesim.report.document import Document
from moesim.report.text import ORIGIN_WORDS

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

__all__ = ["TABLE", "plot_style", "render_explorer", "render_page", "whole_words"]

#: The section that an explorer page fills with the table of its cases.
TABLE = "table"


def render_page(document: Document, kicker: str = "moesim report") -> str:
    """HTML text of the whole report; `kicker` is what stands above its title."""
    return _render("page.html.j2", document, kicker)


def render_explorer(document: Document, cases: Cases, kicker: str) -> str:
    """HTML text of a report whose drawings and table show the same cases, to point at, filter and sort.

    The table fills the section of key `TABLE`; the filter stands below the first section.
    """
    return _render("explorer.html.j2", document, kicker, cases=cases, table_key=TABLE)


def plot_style() -> str:
    """CSS of an explorer's drawings, for figures in files of their own."""
    from importlib.resources import files

    return files("moesim.report").joinpath("templates", "plot.css").read_text(encoding="utf-8")


def _render(template: str, document: Document, kicker: str, **more: object) -> str:
    light, dark = css_variables()
    return _environment().get_template(template).render(
        document=document, kicker=kicker, light=light, dark=dark,
        origins={o.value: words for o, words in ORIGIN_WORDS.items()}, **more,
    )  # fmt: skip


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("moesim.report"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["whole"] = whole_words
    environment.tests["kind"] = lambda block, name: type(block).__name__ == name
    return environment


def whole_words(text: str) -> Markup:
    """Names with hyphens stay on one line, as in Llama-2-70B."""
    from markupsafe import Markup, escape

    words = (
        Markup('<span class="nb">{}</span>').format(word) if "-" in word and len(word) < 34 else escape(word)
        for word in text.split(" ")
    )
    return Markup(" ").join(words)
