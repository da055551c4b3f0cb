"""Files: complete or not at all, the same bytes for the same result, and readable again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from moesim.errors import InputError
from moesim.report import load_result, render, write, write_report
from moesim.report.frames import frames
from moesim.study.results import SCHEMA_VERSION, RunResult
from moesim.timeline import Timeline


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_writes_what_was_promised(report_dir: Path) -> None:
    names = set(contents(report_dir))
    tables = {"points", "operators", "comparisons", "flips", "memory", "inputs"}
    assert {"report.html", "report.md", "results.json", "trace.perfetto-trace"} <= names
    assert {f"tables/{t}.csv" for t in tables} <= names
    assert list(report_dir.parent.iterdir()) == [report_dir], "nothing is left beside the report"


def test_result_comes_back_equal(report_dir: Path, result: RunResult) -> None:
    assert load_result(report_dir) == result
    data = json.loads((report_dir / "results.json").read_text())
    assert data["schema_version"] == SCHEMA_VERSION
    assert list(data) == sorted(data)


def test_same_result_gives_the_same_bytes(
    report_dir: Path, result: RunResult, timeline: Timeline, tmp_path: Path
) -> None:
    files = write_report(result, tmp_path / "again", timeline)
    assert contents(tmp_path / "again") == contents(report_dir)
    assert files[-1].name == "results.json"
    assert len(files) == len(contents(report_dir))


def test_render_gives_the_same_and_keeps_the_trace(result: RunResult, timeline: Timeline, tmp_path: Path) -> None:
    write_report(result, tmp_path, timeline)
    before = contents(tmp_path)
    (tmp_path / "report.html").unlink()
    (tmp_path / "figures" / "old.svg").write_text("stale")
    render(tmp_path)
    assert contents(tmp_path) == before


def test_earlier_reports_leave_nothing_behind_and_other_files_stay(
    result: RunResult, timeline: Timeline, tmp_path: Path
) -> None:
    write_report(result, tmp_path, timeline)
    (tmp_path / "notes.txt").write_text("mine")
    write_report(result.model_copy(update={"flips": ()}), tmp_path)
    names = set(contents(tmp_path))
    assert "notes.txt" in names
    assert not {"trace.perfetto-trace", "tables/flips.csv", "figures/flip-0.svg"} & names


@pytest.mark.parametrize("what", ["page.render_page", "markdown.render_markdown", "frames.frames"])
def test_failure_while_rendering_changes_nothing(
    what: str, result: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write_report(result, out)
    before = contents(out)

    def fail(*_: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(f"moesim.report.{what}", fail)
    with pytest.raises(RuntimeError):
        write_report(result.model_copy(update={"seed": 1}), out)
    with pytest.raises(RuntimeError):
        write_report(result, tmp_path / "fresh")
    assert contents(out) == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("n_good", [0, 3])
def test_failure_while_moving_leaves_whole_files(
    n_good: int, result: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write_report(result, out)
    old = contents(out)
    write_report(result.model_copy(update={"seed": 1}), tmp_path / "new")
    new = contents(tmp_path / "new")
    real, moved = Path.replace, []

    def replace(self: Path, target: Path) -> Path:
        if len(moved) == n_good:
            raise OSError(28, "No space left on device")
        moved.append(target)
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(InputError, match="No space left on device"):
        write_report(result.model_copy(update={"seed": 1}), out)
    now = contents(out)
    assert not list(out.glob(".moesim-*"))
    assert set(now) == set(old)
    assert all(data in (old[name], new[name]) for name, data in now.items())
    assert now["results.json"] == old["results.json"], "the results change last"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "out"]


def test_results_json_is_moved_last(result: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, moved = Path.replace, []

    def replace(self: Path, target: Path) -> Path:
        moved.append(Path(target).name)
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    write_report(result, tmp_path / "out")
    assert moved[-1] == "results.json"


def test_a_file_is_no_directory(result: RunResult, tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("x")
    with pytest.raises(InputError, match="is a file where a directory is meant"):
        write_report(result, target)
    with pytest.raises(InputError, match="name the directory of a report"):
        load_result(target)
    with pytest.raises(InputError, match="cannot be written"):
        write_report(result, target / "below")
    assert target.read_text() == "x"


def broken(data: dict[str, Any], **update: Any) -> str:
    return json.dumps({**data, **update})


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda d: json.dumps(d)[:5000], r"results\.json:1: is not JSON.*cut off"),
        (lambda d: "", r"results\.json:1: is not JSON"),
        (lambda d: "[1, 2]", "no schema_version"),
        (lambda d: "{}", "no schema_version"),
        (lambda d: broken(d, schema_version=99), r"another version of moesim \(got 99; allowed: 2\)"),
        (lambda d: broken(d, schema_version="2"), "another version"),
        (lambda d: broken(d, surprise=1), "surprise"),
        (lambda d: broken(d, systems=[]) if d.pop("inputs") else "", "inputs: Field required"),
        (lambda d: broken(d, n_devices="many"), "n_devices"),
        (lambda d: broken(d, memory_bytes_per_s=float("nan")), "memory_bytes_per_s"),
        (lambda d: broken(d, systems=[{**d["systems"][0], "points": [{"concurrency": 1}]}]), r"systems\.0\.points\.0\.outcome"),
    ],
)  # fmt: skip
def test_damaged_results_are_one_clear_line(make: Any, match: str, result: RunResult, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(make(json.loads(write.results_json(result))))
    with pytest.raises(InputError, match=match) as caught:
        load_result(tmp_path)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    with pytest.raises(InputError):
        render(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_missing_results(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such directory"):
        load_result(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no results\.json in it"):
        load_result(tmp_path)
    (tmp_path / "results.json").mkdir()
    with pytest.raises(InputError, match=r"no results\.json in it"):
        load_result(tmp_path)
    (tmp_path / "results.json").rmdir()
    (tmp_path / "results.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        load_result(tmp_path)


def test_tables_are_tidy_and_carry_units(report_dir: Path, result: RunResult) -> None:
    points = pd.read_csv(report_dir / "tables" / "points.csv")
    assert len(points) == sum(len(s.points) for s in result.systems)
    row = points[(points.system == "Mixtral-8x7B") & (points.concurrency == 16)].iloc[0]
    expected = next(p for p in result.systems[0].points if p.concurrency == 16)
    assert row.tpot_s == pytest.approx(expected.tpot_s, rel=1e-12)
    assert {"ttft_s", "tpot_s", "energy_j_per_output_token", "usd_per_million_output_tokens"} <= set(points.columns)
    flips = pd.read_csv(report_dir / "tables" / "flips.csv")
    assert len(flips) == sum(len(f.x) for f in result.flips)
    operators = pd.read_csv(report_dir / "tables" / "operators.csv")
    assert operators.time_s.sum() == pytest.approx(
        sum(r.time_s for s in result.systems for d in s.details for r in d.operators)
    )
    load = frames(result)["expert_load"]
    assert load.n_tokens.sum() == sum(map(sum, result.systems[0].expert_load.counts))


def test_schema_document_names_every_field() -> None:
    text = (Path(__file__).parents[2] / "docs" / "results-schema.md").read_text()
    from moesim.study import results

    for name in results.__all__:
        record = getattr(results, name)
        if name == "SCHEMA_VERSION":
            assert f"Schema version: {record}" in text
            continue
        assert f"## {name}\n" in text
        section = text.split(f"## {name}\n")[1].split("\n## ")[0]
        missing = [field for field in record.model_fields if f"`{field}`" not in section]
        assert not missing, f"{name}: {missing}"
