"""The page of a plan: what it says is what the plan found, every mark has a row, and refusals are told."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from moesim.report.plan import write_plan_report
from moesim.report.plan_page import build_plan, render_plan
from moesim.report.plan_rows import missed, plan_rows
from moesim.report.text import number
from moesim.study.plan import PlanResult, PlanSpec, plan

SPEC = PlanSpec(
    model="olmoe-1b-7b", hardware=("hgx_h100", "mi300x_8"), n_devices=2, input_tokens=256, output_tokens=64, ttft_s=0.1,
    tpot_s=0.004, max_batch=64, n_confirm=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def result() -> PlanResult:
    return plan(SPEC)


@pytest.fixture(scope="module")
def html(result: PlanResult) -> str:
    return render_plan(result, build_plan(result))


def data_of(html: str) -> dict[str, list[list[object]]]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    assert found is not None
    data = json.loads(found[1])
    assert isinstance(data, dict)
    return data


def section(html: str, key: str) -> str:
    found = re.search(rf'<section id="{key}".*?</section>', html, re.S)
    assert found is not None, key
    return " ".join(re.sub(r"<[^>]+>", " ", found[0]).split())


def test_sections_and_nothing_from_elsewhere(html: str) -> None:
    keys = re.findall(r'<section id="([a-z]+)"', html)
    assert keys == ["answer", "tradeoff", "table", "commands", "simulated", "refused", "assumptions"]
    assert not re.findall(r'(?:src|href)="(?!#)', html)
    assert "default-src 'none'" in html
    assert "moesim plan" in html


def test_the_answer_is_what_the_plan_found(result: PlanResult, html: str) -> None:
    text = section(html, "answer")
    best = result.plans[0].best
    assert best is not None
    assert best.error_frac is not None
    assert best.label in text
    low, high = (best.tpot_s * 1e3 * (1 + sign * best.error_frac) for sign in (-1, 1))
    assert f"[{number(low)}, {number(high)}]" in text
    assert "prefills of other requests between two tokens" in text
    assert "host time not counted" in text  # the other hardware was not measured
    assert best.vllm.commands[0] in section(html, "commands")
    assert "No serving stack stands behind times on mi300x_8" in text


def test_rows_are_the_plans_deployments_each_once(result: PlanResult, html: str) -> None:
    data = data_of(html)
    rows = plan_rows(result)
    assert [row[0] for row in data["rows"]] == list(range(len(rows)))
    keys = [str(c["key"]) for c in data["columns"]]  # type: ignore[call-overload]
    for row, shown in zip(rows, data["rows"], strict=True):
        assert shown[2 + keys.index("tpot_s")] == pytest.approx(row.item.tpot_s * 1e3, rel=1e-5)
        assert bool(shown[1]) == (row.item.ttft_s <= 0.1 and row.item.tpot_s <= 0.004)
        assert (shown[-1] == "") == bool(shown[1])
    for p in result.plans:
        kinds = [r.kind for r in rows if r.hardware == p.hardware and r.kind]
        assert sum("best" in kind for kind in kinds) == 1
        assert len({r.point.design for r in rows if r.hardware == p.hardware and r.point is not None}) == len(kinds)


def test_every_mark_has_a_row_and_every_row_a_mark(result: PlanResult, html: str) -> None:
    numbers = {r.number for r in plan_rows(result)}
    svgs = re.findall(r'<svg[^>]*id="plot-(?:throughput|first-token)".*?</svg>', html, re.S)
    assert len(svgs) == 2
    for svg in svgs:
        assert {int(i) for i in re.findall(r'data-i="(\d+)"', svg)} == numbers
        assert "goal" in svg
    assert "per device" in svgs[0]
    assert "(ms)" in svgs[0]


def test_titles_state_the_finding(result: PlanResult) -> None:
    best = result.best
    assert best is not None
    title = build_plan(result).figures()[0].title
    assert title.startswith(
        f"Within the goals {best.output_tokens_per_s_per_device:,.0f} tokens/s per device on {best.hardware}"
    )


def test_simulated_and_refused(result: PlanResult, html: str) -> None:
    text = section(html, "simulated")
    for p in result.plans:
        assert p.confirmations
        for c in p.confirmations:
            assert c.load in text
            assert f"({c.throughput_ratio:.3g}" in text or f"({c.throughput_ratio:.2f}" in text
    refused = section(html, "refused")
    for p in result.plans:
        for miss in p.near_misses:
            assert f"{miss.by_frac:.0%}" in refused


@pytest.mark.parametrize(("changed", "words"), [
    ({"tpot_s": 1e-4}, "Nothing meets the goals"),
    ({"model": "deepseek-v3", "tpot_s": None, "ttft_s": None}, "Out of memory"),
])  # fmt: skip
def test_a_plan_without_an_answer_says_why(changed: dict[str, object], words: str) -> None:
    found = plan(SPEC.model_copy(update={"hardware": ("hgx_h100",), **changed}))
    html = render_plan(found, build_plan(found))
    assert words in section(html, "answer")
    assert "Nothing was simulated" in section(html, "simulated")
    assert found.plans[0].near_misses[0].split in section(html, "refused")
    assert "Within the goals" not in html


def test_missed_goals_in_words() -> None:
    assert missed(SPEC, 0.05, 0.003) == ""
    assert missed(SPEC, 0.15, 0.005) == "TTFT 50% over 100 ms, TPOT 25% over 4 ms"


def test_text_is_escaped() -> None:
    spec = SPEC.model_copy(update={"n_confirm": 0, "hardware": ("hgx_h100",), "ttft_s": None, "tpot_s": None})
    found = plan(spec)
    nasty = "</script><b>x</b>"
    found = found.model_copy(update={"spec": spec.model_copy(update={"model": nasty}), "sentences": (nasty,)})
    html = render_plan(found, build_plan(found))
    assert "<b>x</b>" not in html


def test_files(result: PlanResult, tmp_path: Path) -> None:
    write_plan_report(result, tmp_path / "new" / "plan")
    names = {p.name for p in (tmp_path / "new" / "plan").iterdir()}
    assert names == {"report.html", "report.md", "figures", "plan.json", "points.csv", "near_misses.csv"}
    text = (tmp_path / "new" / "plan" / "report.md").read_text()
    for link in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text):
        svg = (tmp_path / "new" / "plan" / link).read_text()
        assert ".plot .pt{" in svg
        assert "prefers-color-scheme:dark" in svg
    best = result.best
    assert best is not None
    assert f"```sh\n{best.vllm.commands[0]}" in text or f"{best.vllm.commands[0]}\n" in text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_the_browser_fills_table_and_filter(result: PlanResult, html: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(html)
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{tmp_path}/report.html"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    n = len(plan_rows(result))
    assert f"{n} of {n} shown" in done.stdout
    assert "hgx_h100</option>" in done.stdout
    assert 'aria-sort="descending"' in done.stdout
