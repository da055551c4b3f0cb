"""The form of eager layers and the errors it is reported with."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moesim.calibrate.measure.evaluate import evaluate_profile, predict_new
from moesim.calibrate.tables import read_table, shape_of
from moesim.cost.forms import Target, physical_time
from moesim.cost.forms_eager import EAGER_MOE, EagerMoeParams
from moesim.errors import InputError
from moesim.ops import MoeShape

TRUTH = EagerMoeParams(0.9, 200.0, 0.4, 0.5, 2e-4, 5e-5, 1e-6, 1.2)
TARGET = Target(2e11, 3e10, 1)
COMMITTED = Path(__file__).resolve().parents[2] / "hardware" / "calibrations" / "cpu_epyc_1core"
DEVICE = """name: cpu_generic
vendor: measured
year: 2026
form: CPU
memory_bytes: 8 GiB
memory_kind: unknown
memory_bytes_per_s: 30 GB/s
peak_flop_per_s:
  bf16: 200 GFLOP/s
n_compute_units: 1
sources:
  - origin: measured
    text: made up for this test
    covers: [year, scale_up_domain_size, memory_bytes, memory_bytes_per_s, peak_flop_per_s, n_compute_units]
"""


def moe(pairs=64.0, hit=8.0, **changes):
    values = {"n_tokens": 32.0, "n_assignments": pairs, "n_padded": pairs, "n_experts_hit": hit, "max_expert_tokens": 12.0,
              "n_local_experts": 16.0, "hidden_size": 512.0, "inter_size": 256.0, "top_k": 2.0} | changes  # fmt: skip
    return MoeShape(**values)


def seconds(shape):
    return float(physical_time(EAGER_MOE.terms(shape, TRUTH, TARGET), TRUTH.power))


def test_form_by_hand():
    p = EagerMoeParams(0.5, 1.0, 0.5, 1e-3, 1e-4, 1e-5, 1e-6, 1.0)
    terms = EAGER_MOE.terms(moe(hidden_size=100.0, inter_size=50.0), p, Target(1e9, 1e6, 1))
    cells = 100 * 50 * (2 * 1.01 + 1.02)
    assert terms.compute_s == pytest.approx(2 * 64 * cells / 0.5e9)
    assert terms.memory_s == pytest.approx(8 * cells * 2 / 0.5e6)
    assert terms.streaming_s == pytest.approx(1e-3 * 64 * (200 + 150) * 2 / 1e6)
    assert terms.overhead_s == pytest.approx(1e-4 + 8e-5 + 16e-6)


def test_more_work_takes_longer():
    base = seconds(moe())
    for more in (
        moe(pairs=65.0),
        moe(hit=9.0),
        moe(n_local_experts=17.0),
        moe(hidden_size=513.0),
        moe(inter_size=257.0),
    ):
        assert seconds(more) > base


def write_profile(folder, noise, seed=0, scale=1.0, shapes=9):
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(shapes):
        hidden, width, n_experts, top_k = (
            int(rng.choice(v)) for v in ((384, 512, 768), (128, 256, 640), (8, 16, 64), (1, 2, 4))
        )
        common = {"op_kind": "moe", "device": "cpu_generic", "stack": "pytorch", "version": "2", "dtype": "bf16",
                  "hidden_size": hidden}  # fmt: skip
        for tokens in (1, 4, 32, 128, 512):
            pairs = tokens * top_k
            hit = min(n_experts, pairs)
            rows.append({**common, "kernel": "looped", "model_shape": f"s{i}", "n_tokens": tokens, "n_assignments": pairs,
                         "n_experts_hit": hit, "max_expert_tokens": max(1, pairs // hit), "n_local_experts": n_experts,
                         "inter_size": width, "top_k": top_k})  # fmt: skip
            for twin, wide in (("active", top_k * width), ("total", n_experts * width)):
                rows.append({**common, "kernel": "dense", "model_shape": f"s{i}:{twin}", "n_tokens": tokens,
                             "n_assignments": tokens, "n_experts_hit": 1, "max_expert_tokens": tokens, "n_local_experts": 1,
                             "inter_size": wide, "top_k": 1})  # fmt: skip
    frame = pd.DataFrame(rows).assign(gated=1.0)
    times = physical_time(EAGER_MOE.terms(shape_of("moe", frame), TRUTH, TARGET), TRUTH.power)
    frame["measured_s"] = times * scale * np.exp(noise * rng.standard_normal(len(frame)))
    folder.mkdir(exist_ok=True)
    frame[frame.kernel == "looped"].to_csv(folder / "measurements.csv", index=False)
    frame[frame.kernel == "dense"].to_csv(folder / "parts.csv", index=False)
    (folder / "device.yaml").write_text(DEVICE)
    return folder


def test_what_the_form_made_is_predicted_for_left_out_shapes(tmp_path):
    found = evaluate_profile(write_profile(tmp_path, 0.0))
    assert [row.what for row in found.layers] == ["looped", "dense"]
    assert all(row.median_frac < 0.01 for row in (*found.layers, *found.ratios))
    assert found.layers[0].n_shapes == 9


def test_noise_shows_as_error(tmp_path):
    row = evaluate_profile(write_profile(tmp_path, 0.2)).layers[0]
    assert 0.06 < row.median_frac < 0.3
    assert row.within_10_percent_frac < 0.8


def test_another_days_table_shows_its_bias(tmp_path):
    known, new = write_profile(tmp_path / "a", 0.01), write_profile(tmp_path / "b", 0.01, seed=5, scale=1.25)
    looped = {row.what: row for row in predict_new(known, new).layers}["looped"]
    assert looped.bias_frac == pytest.approx(1 / 1.25 - 1, abs=0.02)
    ratio = predict_new(known, new).ratios[0]
    assert abs(ratio.bias_frac) < 0.02


def test_folders_that_are_no_profile(tmp_path):
    with pytest.raises(InputError, match="not the folder of a profile"):
        evaluate_profile(tmp_path)
    with pytest.raises(InputError, match="too few"):
        evaluate_profile(write_profile(tmp_path, 0.0, shapes=2))


TARGETS = ("looped", "dense", "dense of equal active parameters / MoE", "dense of equal total parameters / MoE")


def test_committed_profile_meets_the_target_on_left_out_shapes():
    """Unseen shapes of a real PyTorch layer on a CPU: median within 10%, and so the ratio of dense to MoE."""
    found = evaluate_profile(COMMITTED / "profile")
    rows = {row.what: row for row in (*found.layers, *found.ratios)}
    assert rows["looped"].n_shapes >= 8
    assert all(rows[what].median_frac <= 0.10 for what in TARGETS), rows


def test_committed_profile_predicts_shapes_and_token_counts_of_another_run():
    found = predict_new(COMMITTED / "profile", COMMITTED / "profile_unseen")
    rows = {row.what: row for row in (*found.layers, *found.ratios)}
    assert rows["looped"].n_shapes == 5
    assert all(rows[what].median_frac <= 0.10 for what in TARGETS), rows
    seen, new = (
        set(pd.read_csv(COMMITTED / d / "measurements.csv")["model_shape"]) for d in ("profile", "profile_unseen")
    )
    assert not {s for s in seen & new if "new" in s or s.endswith("-s")}


@pytest.mark.parametrize("folder", ["profile", "profile_unseen"])
def test_committed_tables_are_in_the_schema_and_say_where_they_are_from(folder):
    frame = read_table(COMMITTED / folder / "measurements.csv").frame
    assert frame["source"].str.contains("moesim calibrate profile").all()
    assert frame["date"].str.fullmatch(r"\d{4}-\d\d-\d\d").all()
    for name in ("measurements.csv", "parts.csv", "metadata.json", "device.yaml"):
        text = (COMMITTED / folder / name).read_text()
        assert "/root" not in text
        assert "/tmp" not in text
