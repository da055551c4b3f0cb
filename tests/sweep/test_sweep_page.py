"""The page of a sweep: complete without a browser, and alive in a headless one."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from sweep_base import make

from moesim.report.sweep import write_sweep
from moesim.study.sweep import run_sweep
from moesim.study.sweep.findings import best_case, effects, front, swings

AXES = [
    {"path": "model.n_routed_experts", "values": [64, 128, 256, 1024]}, {"path": "model.num_experts_per_tok",
    "values": [1, 4, 8]},
    {"path": "workload.concurrency", "values": [16, 256, 4096]},
]  # fmt: skip
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def result():
    return run_sweep(make(AXES))


@pytest.fixture(scope="module")
def folder(result, tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep")
    write_sweep(result, out)
    return out


def test_files(folder, result):
    names = {p.name for p in folder.iterdir()}
    assert {"report.html", "report.md", "results.csv", "results.parquet", "sweep.json", "figures"} <= names
    assert len((folder / "results.csv").read_text().splitlines()) == result.n_cases + 1
    record = json.loads((folder / "sweep.json").read_text())
    assert len(record["conclusions"]) == 3
    assert sum(record["outcomes"].values()) == result.n_cases


def test_the_page_needs_nothing_from_elsewhere_and_ends_with_three_sentences(folder):
    page = (folder / "report.html").read_text()
    assert not re.search(r'(?:src|href)="(?!#)', page)
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")
    conclusions = json.loads((folder / "sweep.json").read_text())["conclusions"]
    end = html.unescape(re.sub(r"<[^>]+>", "", page[page.index('id="conclusions"') :]))
    assert all(sentence[:60] in end for sentence in conclusions)
    for figure in ("plot-heat", "plot-pareto", "plot-parallel", "plot-bars"):
        assert f'id="{figure}"' in page
    # a name from the outside cannot end the data or begin markup
    assert "</script" not in page[page.index('id="data"') : page.index("</script>", page.index('id="data"'))]


def test_advice_on_designs_says_that_cost_alone_decides(folder):
    first = json.loads((folder / "sweep.json").read_text())["conclusions"][0]
    assert "experts and top-k also change how good the answers are" in first
    assert "each design's loss at equal training" in first
    page = (folder / "report.html").read_text()
    answer = page[page.index('id="answer"') : page.index('id="cases"')]
    assert "Cheapest is not best" in answer
    assert answer.count("This ranks by cost alone") == 1


def test_cases_without_a_serving_stack_are_counted_in_a_warning():
    from moesim.report.sweep_page import build_sweep

    axes = [
        {"path": "hardware", "values": ["hgx_h200", "mi300x_8"]},
        {"path": "workload.concurrency", "values": [16, 64]},
    ]
    moe = {"name": "MoE", "kind": "moe", "model": "deepseek-v3", "parallel": {"tp_size": 8, "ep_size": 8}}
    document, _ = build_sweep(run_sweep(make(axes, {"hardware": "hgx_h200", "systems": [moe]})))
    (warning,) = [b for b in document.sections[0].blocks if getattr(b, "kind", "") == "warning"]
    assert warning.title == "Host time is not counted in 2 of 4 cases that run"
    assert "No serving stack stands behind times on mi300x_8" in warning.text


def test_without_designs_that_differ_nothing_is_said_of_quality():
    from moesim.report.sweep_page import build_sweep

    axes = [{"path": "workload.concurrency", "values": [16, 64]}, {"path": "parallel.tp_size", "values": [4, 8]}]
    _, sentences = build_sweep(run_sweep(make(axes)))
    assert not any("cost alone" in s for s in sentences)


def test_titles_of_figures_state_findings(folder, result):
    page = (folder / "report.html").read_text()
    worst = max(effects(result), key=lambda e: e.ratio)
    assert "The answer moves most with " in page
    assert re.search(r"The answer moves most with [a-z -]+: \d", page)
    assert worst.ratio > 1
    assert re.search(r"\d+ of \d+ cases are beaten by none", page)


def test_hostile_names_stay_text(tmp_path):
    evil = "</script><img src=x onerror=alert(1)>"
    result = run_sweep(make(AXES[:2], title=evil, description=evil))
    write_sweep(result, tmp_path)
    assert "<img" not in (tmp_path / "report.html").read_text()


def test_numbers_behind_the_page(result):
    best = best_case(result)
    usd = np.where(result.ok, result.number("usd_per_million_output_tokens"), np.nan)
    assert usd[best] == np.nanmin(usd)
    by_axis = {e.path: e for e in effects(result)}
    worst = max(np.nanmin(usd[result.settings[2].codes == c]) for c in range(3))
    assert by_axis["workload.concurrency"].ratio == pytest.approx(worst / np.nanmin(usd))
    found = {s.what: s for s in swings(result, best)}
    assert (
        found["output tokens"].high < 1 < found["output tokens"].low
    )  # longer answers share a prefill among more tokens
    x = np.asarray([1.0, 2.0, 3.0, 2.0, np.nan, 3.0])
    y = np.asarray([3.0, 2.0, 1.0, 1.0, 9.0, 1.0])
    assert front(x, y).tolist() == [True, True, True, False, False, True]


_HEAD = """<script>window.errors = []; addEventListener("error", function (e) { errors.push(e.message); });
addEventListener("securitypolicyviolation", function (e) { errors.push(e.violatedDirective); });</script>"""
_PROBE = """<script>
(function () {
  var found = {}, tip = document.getElementById("tip");
  function visible(all) { return Array.prototype.filter.call(document.querySelectorAll(all), function (m) {
    return getComputedStyle(m).display !== "none"; }).length; }
  function hover(mark) {
    var box = mark.getBoundingClientRect();
    mark.dispatchEvent(new MouseEvent("mousemove", { bubbles: true, clientX: box.left + 1, clientY: box.top + 1 }));
    return tip.hidden ? "" : tip.innerText;
  }
  function rows() { return document.querySelectorAll("#rows tbody tr").length; }
  function choose(id, value) { var s = document.getElementById(id); s.value = value; s.dispatchEvent(new Event("change")); }
  found.before = tip.hidden;
  var point = document.querySelector("#plot-pareto .m.top");
  found.hovered = point.dataset.i;
  found.hover = hover(point);
  found.heat = hover(document.querySelector("#plot-heat .m.none"));
  document.getElementById("plot-pareto").dispatchEvent(new MouseEvent("mouseleave"));
  var plot = document.getElementById("plot-heat");
  plot.focus();
  found.focused = document.activeElement === plot;
  plot.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
  found.key1 = tip.hidden ? "" : tip.innerText;
  plot.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
  found.key2 = tip.innerText;
  found.spoken = document.getElementById("spoken").textContent;
  plot.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
  found.escaped = tip.hidden;
  found.rows = rows(); found.marks = visible("#plot-heat .m"); found.none = visible("#plot-heat .m.none");
  choose("feasible", "ok");
  found.okRows = rows(); found.okNone = visible("#plot-heat .m.none"); found.said = document.getElementById("shown").textContent;
  choose("feasible", "bad");
  found.badRows = rows(); found.badPoints = visible("#plot-pareto .m");
  found.why = document.querySelector("#rows td.why").textContent;
  document.getElementById("reset").click();
  found.resetRows = rows();
  var link = document.getElementById("download");
  link.dispatchEvent(new FocusEvent("focus"));
  found.link = link.href; found.name = link.download;
  document.querySelector("#rows th .sort").click();
  found.first = document.querySelector("#rows tbody td").textContent;
  found.errors = errors;
  var out = document.createElement("pre"); out.id = "found"; out.textContent = JSON.stringify(found); document.body.append(out);
})();
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_in_a_browser(folder, result, tmp_path):
    page = (
        (folder / "report.html").read_text().replace("<head>", f"<head>{_HEAD}").replace("</body>", f"{_PROBE}</body>")
    )
    probed = tmp_path / "probed.html"
    probed.write_text(page)
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
    ]
    dom = subprocess.run([*command, probed.as_uri()], capture_output=True, text=True, timeout=120, check=True).stdout
    found = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', dom, re.S)[1]))
    assert found["errors"] == []
    assert found["before"]
    settings = result.configuration(int(found["hovered"]))
    for value in settings.values():
        assert f"{value:,}" in found["hover"] or str(value) in found["hover"]
    assert "requests in flight" in found["hover"]
    assert "out of memory" in found["heat"]
    assert found["focused"]
    assert found["key1"]
    assert found["key2"]
    assert found["key1"] != found["key2"]
    assert "experts" in found["spoken"]
    assert found["escaped"]
    n_ok = int(result.ok.sum())
    assert found["rows"] == found["resetRows"] == result.n_cases
    assert found["okRows"] == n_ok
    assert found["badRows"] == result.n_cases - n_ok
    assert found["none"] > 0 == found["okNone"]
    assert found["badPoints"] == 0
    assert found["said"].startswith(f"{n_ok} of")
    assert "GB short" in found["why"]
    assert found["link"].startswith("blob:")
    assert found["name"] == "sweep.csv"
    assert found["first"] == "64"
