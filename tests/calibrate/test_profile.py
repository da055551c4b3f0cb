"""A whole profile of a few small points: tables, metadata, resuming, stopping, and clear refusals."""

import importlib.util
import json
import re
from dataclasses import replace

import pytest

from moesim.calibrate.measure.plan import scale_for
from moesim.calibrate.measure.shapes import MoeSizes
from moesim.calibrate.profile import profile, record_routing
from moesim.calibrate.tables import read_table
from moesim.errors import InputError, MissingExtraError

HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="needs torch")
TINY = replace(
    scale_for("cpu", "quick"),
    shapes=(MoeSizes("tiny", 64, 32, 8, 2, 1), MoeSizes("other", 32, 32, 4, 1)),
    tokens=(1, 8),
    skew_tokens=(16,),
    grouped_tokens=(4,),
    part_tokens=(4,),
    gemm_sides=((64, 32), (32, 64)),
    attention_heads=((4, 2, 16),),
    prefill=((1, 8),),
    decode=((2, 16),),
    memory_bytes=(1 << 20,),
    message_bytes=(1 << 12,),
    hf_tokens=(2,),
)


@pytest.fixture(autouse=True)
def small_pool(monkeypatch):
    """The layers here are tiny: a block of weights for real ones would take most of the time."""
    if HAS_TORCH:
        from moesim.calibrate.measure import run as runner

        monkeypatch.setattr(runner, "_POOL_CACHES", 0.0)
        monkeypatch.setattr(runner, "_POOL_MIN_BYTES", 64 << 20)


def run(out, **changes):
    settings = {"scale": TINY, "n_rounds": 1, "world_sizes": (), "with_transformers": False} | changes
    return profile("cpu", "quick", out, **settings)


@needs_torch
def test_profile_writes_what_it_says(tmp_path):
    seen = []
    found = run(tmp_path, progress=seen.append)
    assert found.is_complete
    assert not found.is_interrupted
    assert found.n_measured == found.n_planned == len(seen)
    assert found.n_failed == 0, found.failures
    table = read_table(found.table).frame
    assert set(table["op_kind"]) == {"moe", "gemm", "attention_prefill", "attention_decode"}
    assert (table["measured_s"] > 0).all()
    assert (table["spread_s"] >= 0).all()
    one = table[(table["kernel"] == "looped") & (table["model_shape"] == "tiny") & (table["n_tokens"] == 1)].iloc[0]
    assert (one["n_assignments"], one["n_experts_hit"], one["max_expert_tokens"]) == (2, 2, 1)
    facts = json.loads(found.metadata.read_text())
    assert facts["n_threads"] == 1
    assert facts["torch_version"]
    assert facts["date"]
    assert facts["memory_triad_bytes_per_s"] > 1e8
    assert str(tmp_path) not in found.metadata.read_text()


@needs_torch
def test_blocks_of_transformers_are_measured(tmp_path):
    pytest.importorskip("transformers")
    found = run(tmp_path, only={"transformers"}, with_transformers=True)
    assert found.n_failed == 0, found.failures
    rows = read_table(found.table).frame.set_index("model_shape")
    assert len(rows) == 5
    assert rows.loc["deepseek_v3", "n_assignments"] == 8
    assert rows.loc["gpt_oss", "n_experts_hit"] <= 8


@needs_torch
def test_the_device_file_is_a_device(tmp_path):
    from moesim.specs.catalog import load_device

    run(tmp_path)
    device = load_device(str(tmp_path / "device.yaml"))
    assert re.fullmatch(r"cpu_[a-z0-9_]+_1core", device.name)  # never a name of the catalog, whose peaks are others
    assert device.n_compute_units == 1
    assert device.sources[0].origin == "measured"


@needs_torch
def test_the_device_can_be_named(tmp_path):
    found = run(tmp_path, name="my_box", only={"gemm", "memory_triad"})
    assert set(read_table(found.table).frame["device"]) == {"my_box"}
    assert "name: my_box\n" in (tmp_path / "device.yaml").read_text()
    with pytest.raises(InputError, match="another --out folder"):
        run(tmp_path, only={"gemm"})


@needs_torch
def test_stopped_profile_keeps_what_is_done_and_goes_on(tmp_path):
    def stop(progress):
        if progress.n_done == 5:
            raise KeyboardInterrupt

    first = run(tmp_path, progress=stop)
    assert first.is_interrupted
    assert not first.is_complete
    assert first.n_measured == 5
    before = (tmp_path / "partial.jsonl").read_text()
    labels = []
    second = run(tmp_path, progress=lambda p: labels.append(p.label))
    assert second.is_complete
    assert len(labels) == second.n_planned - 5
    assert (tmp_path / "partial.jsonl").read_text().startswith(before)
    third = run(tmp_path, progress=lambda p: pytest.fail("nothing is left to do"))
    assert third.n_measured == second.n_measured


@needs_torch
def test_budget_ends_it(tmp_path):
    found = run(tmp_path, budget_s=0.0)
    assert found.n_measured == 0
    assert not found.is_complete
    assert not found.is_interrupted


@needs_torch
def test_more_rounds_add_samples(tmp_path):
    run(tmp_path, only={"gemm"})
    before = (tmp_path / "partial.jsonl").read_text().count("\n")
    found = run(tmp_path, only={"gemm"}, n_rounds=3)
    assert (tmp_path / "partial.jsonl").read_text().count("\n") == before + 2 * found.n_planned


@needs_torch
def test_another_seed_needs_another_folder(tmp_path):
    run(tmp_path, only={"gemm"})
    with pytest.raises(InputError, match="another --out folder"):
        run(tmp_path, only={"gemm"}, seed=1)


@needs_torch
def test_what_cannot_run_is_recorded_not_hidden(tmp_path, monkeypatch):
    from moesim.calibrate.measure import cases

    def broken(*_):
        raise RuntimeError("not implemented for this device\nstack")

    monkeypatch.setitem(cases._BUILDERS, "memory_copy", broken)
    found = run(tmp_path, only={"memory_copy", "memory_triad"})
    assert (found.n_failed, found.n_measured) == (1, 1)
    assert found.is_complete
    assert "not implemented for this device" in found.failures[0]


@needs_torch
def test_collectives_over_two_processes(tmp_path):
    pytest.importorskip("torch.distributed")
    found = run(tmp_path, world_sizes=(2,), only={"all_reduce", "all_gather", "all_to_all"})
    assert found.n_failed == 0, found.failures
    rows = read_table(found.table).frame
    assert sorted(rows["op_kind"]) == ["all_gather", "all_reduce", "all_to_all"]
    assert set(rows["n_ranks"]) == {2}


@needs_torch
def test_collectives_that_never_meet_end_in_time():
    import time

    from moesim.calibrate.measure.collectives import measure_collectives
    from moesim.calibrate.measure.plan import Point

    start = time.monotonic()
    point = Point("all_reduce", "gloo", "fp32", sizes={"n_ranks": 2, "message_bytes": 64})
    (record,) = measure_collectives([point], 2, 0.05)
    assert time.monotonic() - start < 20
    assert record.error == "no answer within 0 s"


def user_layer():
    from moesim.calibrate.measure.recording import _build

    module, module.hidden_size, _ = _build("reference", 0)
    return module


def user_layer_of_known_width():
    module = user_layer()
    module.inter_size = 128
    return module


@needs_torch
def test_a_layer_of_the_user_is_measured_with_its_routing(tmp_path):
    found = run(tmp_path, layer=f"{__name__}:user_layer_of_known_width", only={"user"})
    rows = read_table(found.table).frame
    assert list(rows["n_tokens"]) == [1, 8]
    assert set(rows["n_local_experts"]) == {32}
    assert list(rows["n_assignments"]) == [4, 32]
    assert set(rows["dtype"]) == {"fp32"}


@needs_torch
def test_a_layer_of_unknown_width_stays_out_of_the_table(tmp_path):
    import pandas as pd

    found = run(tmp_path, layer=f"{__name__}:user_layer", only={"user"})
    assert found.n_measured == 2
    assert pd.read_csv(found.table).empty
    assert len(pd.read_csv(found.parts)) == 2


@needs_torch
@pytest.mark.parametrize(("arguments", "message"), [
    (("tpu", "quick"), "unknown device"),
    (("cpu", "slow"), "unknown mode"),
    (("cuda:99", "quick"), r"no CUDA GPU|no such GPU"),
])  # fmt: skip
def test_bad_words(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        profile(*arguments, tmp_path)


def test_without_torch_one_line_names_the_extra(tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "torch" else real(name, *a))
    with pytest.raises(MissingExtraError, match=r"pip install 'moesim\[calibrate\]'"):
        profile("cpu", "quick", tmp_path)
    with pytest.raises(MissingExtraError, match="torch"):
        record_routing("reference", tmp_path / "t")


def test_profile_is_importable_without_torch():
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['torch'] = None; import moesim.calibrate.profile; assert 'pandas' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_torch
@pytest.mark.parametrize(("name", "wanted"), [
    ("NVIDIA H100 80GB HBM3", "h100_sxm"), ("NVIDIA H100 PCIe", "h100_pcie"), ("NVIDIA H200", "h200_sxm"),
    ("NVIDIA B200", "b200_sxm"), ("NVIDIA GB200", "gb200"), ("NVIDIA A100-SXM4-80GB", "a100_sxm"),
    ("NVIDIA A100-SXM4-40GB", "a100_sxm_40gb"), ("NVIDIA A100-PCIE-40GB", "a100_pcie_40gb"), ("NVIDIA L40S", "l40s"),
    ("NVIDIA A100 80GB PCIe", "a100_pcie"),
    ("NVIDIA L4", "l4"), ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx_pro_6000"), ("NVIDIA H20", "h20_sxm"),
    ("NVIDIA GeForce RTX 4090", "rtx_4090"), ("Some New Chip", "some_new_chip"),
])  # fmt: skip
def test_names_of_gpus(name, wanted):
    from moesim.calibrate.measure.machine import _catalog_of

    assert _catalog_of(name) == wanted
