import inspect
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import moesim
from moesim.study.tabular import MOST_HTML_ROWS, html_table

API_PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"
SCENARIO = {
    "title": "two",
    "hardware": "hgx_h100",
    "n_devices": 2,
    "systems": [{"name": "a", "kind": "moe", "model": "olmoe-1b-7b", "parallel": {"tp_size": 2}}],
    "workload": {"input_tokens": 128, "output_tokens": 16, "concurrency": [1, 8]},
}


def fresh(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout


def test_names_are_sorted_complete_and_found():
    assert list(moesim.__all__) == sorted(moesim.__all__)
    for name in moesim.__all__:
        assert getattr(moesim, name) is not None
    assert set(moesim.__all__) <= set(dir(moesim))
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = moesim.nothing_such


def test_every_name_is_on_the_api_page():
    text = API_PAGE.read_text()
    for name in moesim.__all__:
        assert f"`{name}" in text, name


def test_every_option_of_a_function_is_on_the_api_page():
    text = API_PAGE.read_text()
    for name in ("estimate", "run", "serve", "sweep", "plan", "profile", "fit", "check"):
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}(")]
        for option in inspect.signature(getattr(moesim, name)).parameters:
            assert option in row or option == "redundant_experts", (name, option)


def test_import_is_light():
    out = fresh(
        "import sys, time; t = time.process_time(); import moesim; d = time.process_time() - t;"
        "print(d, *[m for m in ('numpy', 'pandas', 'scipy', 'matplotlib', 'simpy', 'pydantic', 'typer') if m in sys.modules])"
    ).split()
    assert out[1:] == []
    assert float(out[0]) < 0.05


def test_estimate_needs_no_tables_or_plots():
    out = fresh(
        "import sys, moesim; e = moesim.estimate('mixtral-8x7b', 'hgx_h100', tp=2); e._repr_html_();"
        "print(*[m for m in ('pandas', 'scipy', 'matplotlib', 'simpy', 'typer', 'torch') if m in sys.modules])"
    )
    assert out.split() == []


def test_estimate():
    e = moesim.estimate("mixtral-8x7b", "hgx_h100", tp=2, batch=4)
    frame = e.to_frame()
    assert frame["time_s"].sum() == pytest.approx(e.time_s)
    assert e._repr_html_().startswith("<table>")
    assert str(e).startswith("mixtral-8x7b on hgx_h100, TP2: decode, batch 4")
    with pytest.raises(Exception, match="frozen"):
        e.time_s = 1.0
    slow = moesim.estimate("mixtral-8x7b", "hgx_h100", tp=2, batch=4, routing={"family": "zipf", "skew": 1.5})
    assert slow.operators != e.operators


def test_run():
    answer = moesim.run(SCENARIO, engine="analytic")
    frame = answer.to_frame()
    assert frame["concurrency"].tolist() == [1, 8]
    assert answer.result.seed == moesim.run(SCENARIO, engine="analytic", seed=0).result.seed
    assert "<table>" in answer._repr_html_()
    assert str(answer).splitlines()[0] == SCENARIO["title"]
    with pytest.raises(AttributeError):
        answer.result = None


def test_serve():
    spec = {
        "title": "s",
        "hardware": "h100_sxm",
        "system": {"name": "a", "kind": "moe", "model": "olmoe-1b-7b"},
        "serving": {
            "arrivals": {"kind": "poisson", "rate_per_s": 20.0, "n_requests": 30},
            "input": {"kind": "fixed", "tokens": 64},
            "output": {"kind": "fixed", "tokens": 8},
            "scheduler": {"max_num_seqs": 8, "max_num_batched_tokens": 512, "max_model_len": 256},
        },
    }
    served = moesim.serve(spec)
    assert len(served.requests()) == 30
    assert served.to_frame()["latency"].tolist()[0] == "ttft_s"
    assert "requests/s" in served._repr_html_()
    assert "requests/s" in str(served)


def test_plan_takes_one_or_several():
    one = moesim.plan("olmoe-1b-7b", "hgx_h100", 1, 128, 32, max_batch=8, n_confirm=0)
    assert isinstance(one.to_frame(), pd.DataFrame)
    two = moesim.plan("olmoe-1b-7b", ["hgx_h100", "hgx_a100"], 1, 128, 32, max_batch=8, n_confirm=0)
    assert [p.hardware for p in two.plans] == ["hgx_h100", "hgx_a100"]
    assert two._repr_html_().count("<tr>") == 1 + len(two.rows())


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: moesim.estimate("mixtral-8x7b", "hgx_h100", tp=3), "tp_size"),
        (lambda: moesim.estimate("mixtral-8x7b", "hgx_h100", tp=0), "tp_size"),
        (lambda: moesim.estimate("mixtral-8x7b", "hgx_h100", engine="x"), "engine"),
        (lambda: moesim.estimate("mixtral-8x7b", "hgx_h100", batch=0), "batch"),
        (lambda: moesim.estimate("mixtral-8x7b", "hgx_h100", batch="64"), "batch"),
        (lambda: moesim.estimate("mixtral-8x7b", "hgx_h100", context=1.5), "context"),
        (lambda: moesim.estimate("mixtral-8x7b", "hgx_h100", cached=-1), "cached"),
        (lambda: moesim.estimate("mixtral-8x7b", "hgx_h20", calibration="vllm"), "calibration"),
        (lambda: moesim.estimate("mixtral-8x7b", "hgx_h100", weight_dtype="fp9"), "weight_dtype"),
        (lambda: moesim.estimate("mixtral-8x7b", "hgx_h100", routing={"family": "zip"}), "family"),
        (lambda: moesim.plan("mixtral-8x7b", "hgx_h100", 0, 8, 8), "n_devices"),
        (lambda: moesim.plan("mixtral-8x7b", "hgx_h100", 4, 8, 8, ttft=1.0), "ttft"),
        (lambda: moesim.plan("mixtral-8x7b", [], 4, 8, 8), "hardware"),
        (lambda: moesim.plan("mixtral-8x7b", "hgx_h100", 4, 8, 8, tpot_s=float("nan")), "tpot_s"),
        (lambda: moesim.run({**SCENARIO, "hardware": "nope"}), "hardware"),
        (lambda: moesim.run("nope"), "scenario"),
        (lambda: moesim.serve("nope"), "serving"),
        (lambda: moesim.sweep("nope"), "sweep"),
        (lambda: moesim.check("nope/x", "none.csv"), "calibration"),
    ],
)
def test_bad_input_is_one_line(call, field):
    with pytest.raises(moesim.InputError) as caught:
        call()
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


def test_html_escapes_and_is_cut():
    rows = [{"a": "<b>", "b": None, "c": 0.5}] * (MOST_HTML_ROWS + 5)
    text = html_table(rows, "x < y")
    assert "<b>" not in text
    assert "&lt;b&gt;" in text
    assert "x &lt; y" in text
    assert "5 more rows" in text
    assert "no rows" in html_table([])
