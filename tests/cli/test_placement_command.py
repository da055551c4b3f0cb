"""`moesim placement`: tables, files, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moesim.cli.app import app
from moesim.errors import InputError
from moesim.specs.catalog import load_model
from moesim.specs.routing import RouterFamily, RoutingSpec
from moesim.study.placements import PlacementQuestion, Study, placement_tables

OLMOE = ["placement", "--model", "olmoe-1b-7b", "--hardware", "hgx_h100", "--ep", "8"]


def small(model: str, hardware: str, ep_size: int, redundant: tuple[int, ...] = (0,)) -> PlacementQuestion:
    preset = RoutingSpec(family=RouterFamily.PRESET, preset=model)
    return PlacementQuestion(
        load_model(model), hardware, ep_size, (preset,), redundant, batch_per_rank=16, context=512, n_steps=24,
        periods_steps=(4, 12), n_tokens=512,
    )  # fmt: skip


def run(*argv: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, [*OLMOE, *argv])
    if isinstance(done.exception, InputError):
        return 2, str(done.exception)
    assert done.exception is None, done.exception
    return done.exit_code, done.stdout


def test_the_price_of_skew_grows_with_it_and_balancing_wins_most_of_it_back(tmp_path: Path) -> None:
    code, text = run("--routing", "lognormal:0.3", "--routing", "lognormal:1.2", "--out", str(tmp_path / "out"))
    assert code == 0
    assert "lognormal:1.2" in text
    with (tmp_path / "out" / "price.csv").open() as file:
        rows = list(csv.DictReader(file))
    lost = {(row["skew"], row["placement"]): float(row["lost_s"]) for row in rows}
    assert lost["lognormal:1.2", "contiguous"] > 2 * lost["lognormal:0.3", "contiguous"] > 0
    assert lost["lognormal:1.2", "eplb"] < 0.7 * lost["lognormal:1.2", "contiguous"]
    (table,) = json.loads((tmp_path / "out" / "placement.json").read_text())
    assert table["study"] == "price"
    assert len(table["rows"]) == len(rows) == 4


def test_all_studies_that_apply() -> None:
    tables = placement_tables(small("olmoe-1b-7b", "hgx_h100", 8, (0, 8)))
    assert [t.study for t in tables] == [Study.PRICE, Study.WINDOW, Study.COPIES, Study.LOCALITY]
    assert all(t.rows and t.notes for t in tables)
    never, often, *_ = tables[1].rows
    assert often["rank_imbalance_ratio"] < never["rank_imbalance_ratio"]
    assert often["moved_bytes_per_replacement"] > 0 == never["moved_bytes_per_replacement"]


def test_a_study_asked_for_twice_is_done_once_and_step_times_share_the_calibration() -> None:
    question = small("olmoe-1b-7b", "hgx_h100", 8)
    price, window = placement_tables(question, [Study.PRICE, Study.WINDOW, Study.PRICE])
    even_s, never_s = price.rows[0]["balanced_time_s"], window.rows[0]["step_s"]
    assert even_s < never_s < 1.5 * even_s


def test_limits_need_groups_and_show_what_they_save() -> None:
    question = small("deepseek-v3", "h100_x12_nodes", 32)
    (table,) = placement_tables(question, [Study.LIMITS])
    crossing = [row["cross_domain"] for row in table.rows]
    assert crossing[:4] == sorted(crossing[:4])
    assert crossing[-1] > 2 * crossing[0]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--study", "prize"], "--study: not known"),
        (["--study", "all", "--study", "price"], "--study: all is all studies"),
        (["--study", "copies"], "redundant: needs redundant slots"),
        (["--study", "limits"], "n_group"),
        (["--routing", "zipf"], "--routing: needs a number"),
        (["--drift", "sideways"], "--drift: not known"),
        (["--model", "llama-3.1-70b"], "model: needs a model with experts"),
        (["--ep", "16"], "needs 16 devices"),
    ],
)
def test_what_is_refused_in_one_line(argv: list[str], said: str, tmp_path: Path) -> None:
    code, text = run(*argv, "--out", str(tmp_path / "out"))
    assert code == 2
    assert said in text
    assert "\n" not in text
    assert not (tmp_path / "out").exists()
