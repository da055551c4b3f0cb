"""The report as one HTML file that needs nothing else: no network, no fonts, no scripts from elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesim.report.colours import css_variables
from moesim.report.document import Document
from moesim.report.text import ORIGIN_WORDS

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["render_page", "whole_words"]


def render_page(document: Document) -> str:
    """HTML text of the whole report."""
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
    light, dark = css_variables()
    return environment.get_template("page.html.j2").render(
        document=document, light=light, dark=dark, origins={o.value: words for o, words in ORIGIN_WORDS.items()}
    )


def whole_words(text: str) -> Markup:
    """Names with hyphens stay on one line, as in Llama-2-70B."""
    from markupsafe import Markup, escape

    words = (
        Markup('<span class="nb">{}</span>').format(word) if "-" in word and len(word) < 34 else escape(word)
        for word in text.split(" ")
    )
    return Markup(" ").join(words)
