"""Every shipped sweep runs, and what its report says follows from its numbers."""

import re

import numpy as np
import pytest

from moesim.report.sweep_page import build_sweep
from moesim.specs.catalog import data_dir
from moesim.study.sweep import load_sweep, run_sweep

NAMES = sorted(p.stem for p in (data_dir() / "scenarios" / "sweeps").glob("*.yaml"))


@pytest.fixture(scope="module")
def results():
    kept = {}

    def get(name):
        if name not in kept:
            spec, file = load_sweep(name)
            kept[name] = run_sweep(spec, file=file, name=name)
        return kept[name]

    return get


def test_what_the_issue_asks_for_is_shipped():
    assert NAMES == [
        "break-even-batch-by-link", "break-even-by-prefill", "experts-by-topk-fixed-active", "experts-by-topk-fixed-total",
        "experts-for-a-training-budget",
        "gpus-for-deepseek-v3", "granularity", "skew-by-ep",
    ]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_each_runs_and_ends_with_three_sentences_and_bars(results, name):
    result = results(name)
    document, sentences = build_sweep(result)
    assert result.done.all()
    assert result.ok.mean() > 0.5
    answers = zip(result.columns["outcome"], result.columns["reason"], strict=True)
    assert all(reason or outcome == "ok" for outcome, reason in answers)
    assert len(sentences) == 3
    assert all(re.search(r"\d", s) and s.endswith(".") and "nan" not in s for s in sentences)
    assert document.sections[-1].key == "conclusions"
    assert document.sections[-2].key == "sensitivity"
    assert {f.key for f in document.figures()} >= {"heat", "pareto", "sensitivity"}


def test_break_even_flips_where_the_page_says(results):
    """Where ranks take prompts as they come, slow links alone make the mixture cheaper: they hurt all-reduces more."""
    result = results("break-even-batch-by-link")
    best = np.nan_to_num(result.number("usd_ratio").reshape(17, 2, 9)).max(axis=1)
    scales = next(c for c in result.settings if c.path == "network.scale").values
    slow, whole = best[:, 0], best[:, scales.index(1.0)]
    assert slow[0] < 1 < slow[15]  # dense is cheaper at small batches, the MoE at large ones
    assert whole.max() < 1
    by_links = result.number("usd_ratio").reshape(17, 2, 9)[:15, 0]  # attention data parallel
    assert (np.diff(by_links[0]) <= 1e-9).all()
    assert "DeepSeek-V3 is cheaper" in build_sweep(result)[1][0]


def test_the_way_to_prefill_decides_between_mixture_and_dense(results):
    result = results("break-even-by-prefill")
    ratio = result.number("usd_ratio").reshape(17, 3)
    lockstep, balanced, together = (ratio[:16, i] for i in range(3))
    assert lockstep.max() < 1
    assert balanced[0] < 1 < balanced[-1]
    assert (together >= balanced).all()  # a bound
    assert (balanced[4:] > lockstep[4:]).all()
    boundary = build_sweep(result)[1][1]
    assert "for 1 of its 3 values it never does" in boundary


def test_skew_costs_more_the_more_ranks_and_eplb_gives_some_back(results):
    result = results("skew-by-ep")
    imbalance = result.number("rank_imbalance_ratio").reshape(7, 4, 2)
    assert (np.diff(imbalance[:, :, 0], axis=0) > 0).all()  # skew
    assert (np.diff(imbalance[-1, :, 0]) > 0).all()  # ranks
    assert (imbalance[3:, :, 1] < imbalance[3:, :, 0]).all()


def test_larger_budgets_want_larger_models(results):
    result = results("experts-for-a-training-budget")
    loss, active = result.number("loss").reshape(4, -1), result.number("n_active_params").reshape(4, -1)
    best = [active[i, np.argmin(loss[i])] for i in range(4)]
    assert best == sorted(best)
    assert best[0] < best[3]
    assert loss.min(axis=1).tolist() == sorted(loss.min(axis=1), reverse=True)
