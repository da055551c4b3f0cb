"""The page stands alone, says what it must, and can be read by everybody."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_sample import DENSE13, DENSE70, MANY, MOE, sample_result

from moesim.report.markdown import render_markdown
from moesim.report.page import render_page
from moesim.report.sections import build
from moesim.study.results import RunResult

VOID = {"meta", "br", "hr", "img", "link", "input", "path", "use", "image", "rect", "circle"}
SECTIONS = (
    "answer",
    "systems",
    "results",
    "why",
    "ranks",
    "routing",
    "flips",
    "operators",
    "quality",
    "inputs",
    "limits",
)


class Reader(HTMLParser):
    """Collects elements and checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture(scope="module")
def html(report_dir: Path) -> str:
    return (report_dir / "report.html").read_text()


@pytest.fixture(scope="module")
def page(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    return reader


def test_tags_are_closed_and_sections_are_linked(page: Reader) -> None:
    assert page.open == []
    assert [a["id"] for a in page.all("section")] == list(SECTIONS)
    assert [a["href"] for a in page.all("a")][1:] == [f"#{s}" for s in SECTIONS]


def test_needs_nothing_from_elsewhere(html: str, page: Reader) -> None:
    for tag, attrs in page.elements:
        for name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
            value = attrs.get(name) or ""
            assert not value or value.startswith(("#", "data:image/png;base64,")), (tag, name, value[:60])
    assert not re.findall(r"url\((?!#)", html)
    assert "@import" not in html
    assert not page.all("link")
    assert "default-src 'none'" in html
    assert len(html) < 3e6


def test_ids_are_unique_and_references_resolve(html: str, page: Reader) -> None:
    ids = [a["id"] for _, a in page.elements if a.get("id")]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', html))
    assert {a or b for a, b in used} <= set(ids)
    labels = {part for _, a in page.elements for part in (a.get("aria-labelledby") or "").split()}
    assert labels <= set(ids)


def test_says_the_answer_in_numbers(page: Reader, result: RunResult) -> None:
    text = " ".join("".join(page.text).split())
    for name in (MOE, DENSE70, DENSE13, MANY):
        assert name in text
    at = {s.name: next(p for p in s.points if p.concurrency == 16) for s in result.systems}
    for point in at.values():
        assert f"{point.usd_per_million_output_tokens:.3g}" in text
        assert f"{point.tpot_s * 1e3:.3g}" in text
    for comparison in result.comparisons:
        if comparison.concurrency == 16:
            assert comparison.why in text.replace("A decode", "a decode")
    assert "flips at 10,281" in text
    assert "10⁴⁶ possible paths" in text
    assert "This is not an MoE" in text
    assert "8 possible paths" in text


def test_infeasible_systems_show_demand_bound_gap_and_remedies(page: Reader) -> None:
    text = " ".join("".join(page.text).split())
    assert "Demand 127 GB per device, bound 80.0 GB, gap 47.2 GB." in text
    assert "Would fit: 4 devices (TP4) instead of 2." in text
    assert "out of memory: needs" in text


def test_every_table_says_how_well_founded_it_is(page: Reader, html: str) -> None:
    assert len(page.all("table")) == html.count('class="origin"')
    assert "Inputs: 1 measured, 1 fitted, 5 quoted, 1 assumed." in html
    for origin in ("measured", "fitted", "datasheet", "paper", "secondary", "assumption"):
        assert f'class="badge {origin}"' in html
        assert f".badge.{origin}" in html
    assert "rows without one are assumption only" in html
    assert "90% intervals from serving runs that no fit saw" in html


def test_numbers_show_their_intervals(page: Reader, html: str) -> None:
    assert 'class="ends">[' in html
    assert "assumption only" in html


def test_every_figure_has_a_title_and_a_text(page: Reader, html: str) -> None:
    n_svg = len(page.all("svg"))
    assert n_svg == len(page.all("figure")) >= 12
    for svg in page.all("svg"):
        assert svg["role"] == "img"
        title, desc = (svg["aria-labelledby"] or "").split()
        for key in (title, desc):
            assert re.search(rf'<(title|desc) id="{key}">[^<]{{8,}}<', html), key
    assert "<text" in html


def test_colours_follow_light_dark_and_print(html: str) -> None:
    assert "@media (prefers-color-scheme:dark)" in html
    assert "@media print" in html
    figures = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.S))
    assert "var(--s0)" in figures
    assert not re.findall(r"(?:fill|stroke): #a5[0-9a-f]{2}5e", figures)
    fixed = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", figures))
    assert not fixed, "a colour that does not follow the reader's scheme"
    used = set(re.findall(r"var\(--([a-z0-9]+)\)", html))
    for scheme in re.findall(r":root[^{]*\{(--[^}]*)\}", html):
        assert used <= set(re.findall(r"--([a-z0-9]+):", scheme))


def test_text_from_scenarios_is_escaped() -> None:
    sample = sample_result()
    nasty = "<script>alert('x')</script> & \"quoted\" | pipe"
    scenario = sample.scenario.model_copy(update={"title": nasty, "description": nasty})
    systems = (sample.systems[0].model_copy(update={"name": "<b>bold & co</b> $5$ 模型"}), *sample.systems[1:])
    document = build(sample.model_copy(update={"scenario": scenario, "systems": systems, "headline": (nasty,)}))
    html = render_page(document)
    assert "<script>alert" not in html
    assert "<b>bold" not in html
    assert html.count("&lt;b&gt;bold &amp; co&lt;/b&gt; $5$ 模型") > 10
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    assert "<script>" not in render_markdown(document).replace("\\<", "").replace("\\>", "")


def test_rumours_are_marked() -> None:
    sample = sample_result()
    scenario = sample.scenario.model_copy(update={"is_assumption": True})
    html = render_page(build(sample.model_copy(update={"scenario": scenario})))
    assert 'class="banner"' in html
    assert "rests on assumption" in html


def test_a_bare_result_still_renders() -> None:
    """One dense system that does not fit anywhere, nothing compared."""
    sample = sample_result()
    dense = sample.systems[1]
    points = tuple(p.model_copy(update={"outcome": "out of memory", "reason": "too big"}) for p in dense.points[-1:])
    bare = sample.model_copy(
        update={
            "systems": (dense.model_copy(update={"details": (), "points": points}),),
            "comparisons": (), "flips": (), "quality": (), "headline": (), "notes": (), "inputs": (),
        }
    )  # fmt: skip
    html = render_page(build(bare))
    assert "out of memory" in html
    assert 'id="flips"' not in html


def test_wide_models_stay_small() -> None:
    """61 layers of 384 experts: the heat map is one image, not 23,424 rectangles."""
    html = render_page(build(sample_result(n_layers=61, n_experts=384, top_k=8)))
    assert len(html) < 3e6
    assert html.count("data:image/png;base64,") >= 1
    load = re.search(r'<figure id="figure-load-0">.*?</figure>', html, flags=re.S)
    assert load is not None
    assert len(load.group(0)) < 150_000


def test_markdown_links_figures_that_exist(report_dir: Path) -> None:
    text = (report_dir / "report.md").read_text()
    links = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert len(links) >= 12
    for link in links:
        svg = (report_dir / link).read_text()
        assert svg.startswith("<svg")
        assert "prefers-color-scheme:dark" in svg
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.M):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_loads_in_a_browser_without_errors(report_dir: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={tmp_path}",
         "--dump-dom", f"file://{report_dir}/report.html"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert "CONSOLE" not in done.stderr, done.stderr
    assert "Switch to dark" in done.stdout, "the script did not run"


_PROBE = """<pre id="found"></pre><script>
document.getElementById("found").textContent = JSON.stringify(Array.prototype.map.call(
  document.querySelectorAll(".table"), function (t) {
    return [t.querySelector("table").id, t.scrollWidth - t.clientWidth, t.clientWidth]; }));
</script></body>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_tables_that_are_open_need_no_scrolling_on_a_laptop(html: str, tmp_path: Path) -> None:
    import html as markup
    import json

    (tmp_path / "report.html").write_text(html.replace("</body>", _PROBE))
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,2000",
         f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{tmp_path}/report.html"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)
    assert found is not None
    widths = {name: (over, there) for name, over, there in json.loads(markup.unescape(found[1]))}
    assert widths["table-answer"][1] > 900
    wide = {name for name, (over, there) in widths.items() if there and over > 0}
    assert not wide & {"table-answer", "table-systems", "table-results", "table-comparisons", "table-flip-map"}
