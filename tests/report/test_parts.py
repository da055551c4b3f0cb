"""Figures and formatting, piece by piece."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from itertools import pairwise

import pytest
from report_sample import sample_result

from moesim.report import figures_flip, host, text
from moesim.report.colours import GROUP_COLOUR, WEIGHT_COLOUR, css_variables
from moesim.report.figures import draw
from moesim.report.figures_cost import breakdown, memory_parts, pareto, time_by_group
from moesim.report.figures_flip import crossings_of
from moesim.report.figures_routing import rank_changes
from moesim.report.tables import focus_concurrency, operator_tables, results_table
from moesim.study.results import PathSample, RunResult


@pytest.mark.parametrize("module", [text, figures_flip, host])
def test_examples_in_docstrings(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


def test_import_is_light() -> None:
    code = (
        "import sys, moesim.report; "
        "print([m for m in ('pandas', 'matplotlib', 'jinja2', 'perfetto', 'simpy', 'scipy', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_drawing_leaves_matplotlib_as_it_was(result: RunResult) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    draw(result)
    assert dict(mpl.rcParams) == before


def test_drawing_is_pure(result: RunResult) -> None:
    assert draw(result) == draw(result)


def test_time_and_memory_add_up(result: RunResult) -> None:
    for system in result.systems:
        assert sum(memory_parts(system.memory).values()) == pytest.approx(system.memory.total_bytes)
        for detail in system.details:
            assert sum(time_by_group(detail).values()) == pytest.approx(detail.time_s, rel=0.003)


def test_front_holds_exactly_the_points_that_no_named_system_beats(result: RunResult) -> None:
    points = [
        (p.output_tokens_per_s_per_user, p.output_tokens_per_s_per_device)
        for s in result.systems
        if s.basis.value == "named"
        for p in s.points
        if p.outcome == "ok"
    ]
    n_best = sum(not any(u >= x and v >= y and (u, v) != (x, y) for u, v in points) for x, y in points)
    block = pareto(result)
    assert block is not None
    told = [int(part.split()[-1]) for part in block.alt.split(": ")[1].split(", ")]
    assert sum(told) == n_best > 1


def test_crossings() -> None:
    assert crossings_of((1.0, 2.0, 4.0), (0.5, None, 2.0)) == []
    assert crossings_of((1.0, 10.0, 100.0), (0.1, 10.0, 0.1)) == pytest.approx([10**0.5, 10**1.5])
    assert crossings_of((1.0, 2.0), (1.5, 1.2)) == []


def test_rank_changes() -> None:
    def sample(ranks: tuple[tuple[tuple[int, ...], ...], ...]) -> PathSample:
        return PathSample(layers=(0, 1, 2), experts=ranks, ranks=ranks, n_possible_paths_log10=1.0)

    assert rank_changes(sample((((0, 1), (0, 1), (1, 0)),))) == 0.5
    assert rank_changes(sample((((0,), (0,), (0,)),))) == 0.0


def test_best_is_marked_once_per_column(result: RunResult) -> None:
    table = results_table(result, [focus_concurrency(result)], "answer", "caption")
    for column in range(1, 7):
        marked = [row[column].text for row in table.rows if row[column].best]
        assert marked
        values = [float(row[column].text.replace(",", "")) for row in table.rows]
        assert float(marked[0].replace(",", "")) in (min(values), max(values))


def test_operators_are_sorted_and_flag_extrapolation(result: RunResult) -> None:
    tables = operator_tables(result)
    assert len(tables) == sum(len(s.details) for s in result.systems)
    for table in tables:
        times = [float(row[3].text.replace(",", "")) for row in table.rows]
        assert times == sorted(times, reverse=True)
    flagged = [t for t in tables if any("†" in row[0].text for row in t.rows)]
    assert flagged
    assert all("outside the range of the calibration" in t.origin_note for t in flagged)


def test_colours_keep_their_contrast() -> None:
    """Text at 4.5:1 and lines at 3:1 on paper, in light and in dark (WCAG 2.2)."""
    for scheme in css_variables():
        colours = dict(part.removeprefix("--").split(":") for part in scheme.rstrip(";").split(";"))
        for name in ("ink", "soft", "alarm"):
            assert _contrast(colours[name], colours["paper"]) >= 4.5, name
        for name in (f"s{i}" for i in range(8)):
            assert _contrast(colours[name], colours["paper"]) >= 3.0, name


def test_no_two_groups_share_a_colour() -> None:
    for colours in (GROUP_COLOUR, WEIGHT_COLOUR):
        assert len(set(colours.values())) == len(colours)
    for scheme in css_variables():
        named = dict(part.removeprefix("--").split(":") for part in scheme.rstrip(";").split(";"))
        experts, dense = named[GROUP_COLOUR["experts"]], named[GROUP_COLOUR["dense_ffn"]]
        assert _contrast(experts, dense) >= 1.8  # told apart by lightness, whatever the colour vision


def test_the_hosts_time_has_a_name_in_the_breakdown(result: RunResult) -> None:
    detail = result.systems[0].details[0]
    host = detail.operators[0].model_copy(update={"name": "host and launches", "group": "host", "hidden_s": 0.0})
    found = time_by_group(detail.model_copy(update={"operators": (host,), "time_s": host.time_s}))
    assert list(found) == ["host"]
    told = result.systems[0].model_copy(update={"details": (detail.model_copy(update={"operators": (host,)}),)})
    block = breakdown(result.model_copy(update={"systems": (told, *result.systems[1:])}))
    assert block is not None
    assert "host and launches" in block.svg


def test_titles_of_figures_state_findings(result: RunResult) -> None:
    titles = {f.key: f.title for f in (*draw(result).cost, *draw(result).time, *draw(result).flips)}
    ok = [s for s in result.systems if s.memory.outcome != "ok" and s.basis.value == "named"]
    assert ok
    assert re.search(r"not fit with [\d,]+ in flight", titles["memory"])
    assert re.match(r"With \d+ in flight .* takes .*s per token", titles["latency"])
    assert titles["pareto"].startswith(("No single winner: ", next(s.name for s in result.systems)))
    assert re.search(r": \d+% of a decode step of ", titles["breakdown"])
    assert "bound" in titles["roofline"]
    assert re.search(r"[+−]\d+\.\d% against perfect balance|next to nothing", titles["gap"])
    curves = [f for f in result.flips if f.axis is result.flips[0].axis]
    n = sum(bool(f.crossings) for f in curves)
    assert f"flips against {n} of {len(curves)}" in titles["flip-0"] or "no verdict" in titles["flip-0"]


def test_labels_of_crossings_keep_off_each_other_and_the_edge(result: RunResult) -> None:
    """Two crossings near the right edge: the labels' boxes, drawn, do not touch."""
    from matplotlib.text import Annotation

    from moesim.report.figures_flip import _mark
    from moesim.report.svg import drawing, log_axis

    curve = result.flips[0].model_copy(
        update={"x": (128.0, 8192.0, 32768.0), "usd_ratio": (2.0, 0.9, None), "tpot_ratio": (2.0, 0.9, None)}
    )
    with drawing(3.7, 2) as (figure, (axes, _)):
        axes.set_xlim(118, 8900)
        log_axis(axes, "x")
        _mark(axes, [3217.0, 7585.0], [curve], 1.0)
        figure.canvas.draw()
        boxes = [a.get_window_extent() for a in axes.get_children() if isinstance(a, Annotation)]
        assert len(boxes) == 2
        assert not boxes[0].overlaps(boxes[1])
        assert max(box.x1 for box in boxes) <= axes.get_window_extent().x1


def test_roofs_are_named_beside_the_axes(result: RunResult) -> None:
    """No line and no operator can run through their labels."""
    from moesim.report import figures_ops
    from moesim.report.svg import drawing

    with drawing(5.0) as (figure, (axes,)):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(0.2, 3e3)
        axes.set_ylim(1e9, 4e15)
        figures_ops._roofs(axes, result, 0.2, 3e3)
        figure.canvas.draw()
        edge = axes.get_window_extent().x1
        boxes = [text.get_window_extent() for text in axes.texts]
        assert len(boxes) >= 2
        assert all(box.x0 > edge for box in boxes)
        ordered = sorted(boxes, key=lambda box: box.y0)
        assert all(low.y1 <= high.y0 for low, high in pairwise(ordered))


def _contrast(a: str, b: str) -> float:
    high, low = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_sample_has_what_the_tests_need() -> None:
    outcomes = {p.outcome for s in sample_result().systems for p in s.points}
    assert outcomes == {"ok", "out of memory"}


def test_the_breakdown_says_that_an_ensembles_models_take_turns() -> None:
    from moesim.specs.scenario import SystemKind

    whole = sample_result()
    alone = whole.model_copy(update={"systems": tuple(s for s in whole.systems if s.kind is not SystemKind.ENSEMBLE)})
    assert any(s.details for s in whole.systems if s.kind is SystemKind.ENSEMBLE)
    for result, says in ((whole, True), (alone, False)):
        block = breakdown(result)
        assert block is not None
        assert ("turns" in block.caption) is says


def test_times_without_a_stack_say_that_the_host_is_left_out(result: RunResult) -> None:
    from moesim.report.host import host_note, run_host_note
    from moesim.report.sections import build
    from moesim.study.uncertainty import Basis

    assert host_note([Basis.RUNS.value, Basis.LENT.value], "x") == ""
    for basis in (Basis.KERNELS, Basis.ASSUMPTION):
        assert "without the host's launches" in host_note([Basis.RUNS.value, basis.value], "x")

    def told(basis: Basis) -> str:
        points = {
            s.name: tuple(p.model_copy(update={"interval_basis": basis.value}) for p in s.points)
            for s in result.systems
        }
        systems = tuple(s.model_copy(update={"points": points[s.name]}) for s in result.systems)
        changed = result.model_copy(update={"systems": systems})
        assert bool(run_host_note(changed)) == (basis not in (Basis.RUNS, Basis.LENT))
        return " ".join(str(block) for block in build(changed).sections[0].blocks)

    assert "Host time is not counted" not in told(Basis.RUNS)
    assert "Host time is not counted" in told(Basis.ASSUMPTION)
    assert result.device_name in told(Basis.KERNELS)
