"""Sampling and the tables made of samples."""

import numpy as np
import pytest

from moesim.calibrate.measure.partial import Partial, Record
from moesim.calibrate.measure.plan import Point, plan_points, scale_for
from moesim.calibrate.measure.shapes import CPU_SHAPES, GPU_SHAPES
from moesim.calibrate.measure.table import Origin, estimate, rows_frame, split_frame
from moesim.errors import InputError

HEADER = {"format_version": 1, "device": "cpu_generic", "device_name": "x", "dtype": "bf16", "n_threads": 1, "seed": 0,
          "layer": None, "torch_version": "2", "date": "2026-01-01"}  # fmt: skip
ORIGIN = Origin("cpu_generic", "pytorch", "2", "here", "2026-01-01")


class FakeClock:
    """A machine on which call i takes durations[i] seconds."""

    def __init__(self, *durations):
        self.durations = list(durations)
        self.log = []

    def time(self, calls):
        which = [call() for call in calls]
        self.log.append(which)
        return sum(self.durations[i] for i in which), 0


def calls(n):
    return [lambda i=i: i for i in range(n)]


def test_samples_use_buffers_in_turn():
    torch = pytest.importorskip("torch")
    assert torch
    from moesim.calibrate.measure.timing import Settings, take_samples

    clock = FakeClock(1.0, 2.0, 3.0)
    found = take_samples(calls(3), clock, Settings(min_samples=5, max_samples=5, target_s=0.0))
    assert found.seconds == (1.0, 2.0, 3.0, 1.0, 2.0)
    assert clock.log[2:] == [[0], [1], [2], [0], [1]]


def test_short_calls_are_timed_many_at_once():
    pytest.importorskip("torch")
    from moesim.calibrate.measure.timing import Settings, take_samples

    clock = FakeClock(1e-5, 1e-5)
    found = take_samples(calls(2), clock, Settings(min_samples=3, max_samples=3, min_sample_s=1e-4))
    assert [len(group) for group in clock.log[2:]] == [10, 10, 10]
    assert found.seconds == pytest.approx((1e-5, 1e-5, 1e-5))


def test_sampling_stops_at_the_target():
    pytest.importorskip("torch")
    from moesim.calibrate.measure.timing import Settings, take_samples

    found = take_samples(calls(2), FakeClock(0.1, 0.1), Settings(min_samples=3, max_samples=9, target_s=0.45))
    assert len(found.seconds) == 5


def test_cpu_clock_times_work_and_reads_memory():
    pytest.importorskip("torch")
    import time

    from moesim.calibrate.measure.timing import CpuClock

    def work():
        # 20 ms of this thread's own time, so that a preempted sample counts the same
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass

    clock = CpuClock()
    seconds, _ = clock.time([work])
    assert 0.015 < seconds < 1.0
    assert clock.peak_bytes() >= 0


def test_estimate_is_median_and_median_absolute_deviation():
    found = estimate([Record("a", 0, (1.0, 5.0, 2.0), (0, 1, 0)), Record("a", 1, (3.0, 100.0))])
    assert (found.measured_s, found.spread_s, found.n_samples, found.n_preempted) == (3.0, 2.0, 5, 1)
    with pytest.raises(ValueError, match="without samples"):
        estimate([])


def test_rows_are_in_the_schema_and_split():
    from moesim.calibrate.tables import MeasurementTable

    moe_sizes = {"n_tokens": 4, **CPU_SHAPES[0].numbers}
    stats = {"n_assignments": 8.0, "n_experts_hit": 5.0, "max_expert_tokens": 3.0}
    points = (
        Point("moe", "looped", "bf16", "mixtral-s", "uniform", moe_sizes),
        Point("moe", "dense", "bf16", "mixtral-s:active", "", {"n_tokens": 4, "hidden_size": 1024, "inter_size": 3584}),
        Point("gemm", "linear", "bf16", "2x3", sizes={"m": 1, "n": 2, "k": 3}),
        Point("part_router", "torch", "bf16", "mixtral-s", "uniform", moe_sizes),
        Point("gemm", "linear", "bf16", "9x9", sizes={"m": 1, "n": 9, "k": 9}),
    )
    records = [Record(points[0].key, 0, (2e-3, 4e-3), (), stats)]
    records += [Record(p.key, 0, (1e-3,)) for p in points[1:4]] + [Record(points[4].key, 0, error="no")]
    frame = rows_frame(points, records, ORIGIN)
    known, rest = split_frame(frame)
    assert list(known["op_kind"]) == ["moe", "gemm"]
    assert list(rest["kernel"]) == ["dense", "torch"]
    table = MeasurementTable.of(known)
    assert table.frame["measured_s"].tolist() == pytest.approx([3e-3, 1e-3])
    assert table.frame["max_expert_tokens"].tolist()[0] == 3.0
    dense = MeasurementTable.of(rest[rest["kernel"] == "dense"]).frame.iloc[0]
    assert (dense["n_assignments"], dense["n_experts_hit"], dense["max_expert_tokens"], dense["top_k"]) == (4, 1, 4, 1)


def test_stats_of_rounds_are_averaged_over_samples():
    point = Point("moe", "user", "bf16", "me", "natural", {"n_tokens": 4})
    records = [
        Record(point.key, 0, (1.0,), (), {"n_experts_hit": 2.0}),
        Record(point.key, 1, (1.0,) * 3, (), {"n_experts_hit": 4.0}),
    ]
    assert rows_frame((point,), records, ORIGIN)["n_experts_hit"].tolist() == [3.5]


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("mode", ["quick", "full"])
def test_plan_has_every_part_and_no_point_twice(kind, mode):
    points = plan_points(scale_for(kind, mode), "bf16", 1e12, ("mixtral",))
    assert len({p.key for p in points}) == len(points)
    assert {p.kind for p in points} == {
        "moe", "gemm", "attention_prefill", "attention_decode", "memory_copy", "memory_triad", "part_router", "part_permute",
        "part_experts", "part_combine",
    }  # fmt: skip
    assert {p.kernel for p in points if p.kind == "moe"} == {"looped", "grouped", "padded", "dense", "transformers"}
    assert {p.load for p in points if p.kernel == "looped"} == {"uniform", "zipf", "balanced"}


def test_plan_leaves_out_layers_that_do_not_fit():
    largest = max(s.n_weights for s in GPU_SHAPES) * 2
    names = {p.name for p in plan_points(scale_for("cuda", "full"), "bf16", largest - 1)}
    assert "deepseek-v3" not in names
    assert "mixtral-8x7b" in names


def test_quick_is_a_part_of_full():
    quick, full = ({p.key for p in plan_points(scale_for("cpu", m), "bf16", 1e12)} for m in ("quick", "full"))
    assert len(quick) < len(full) / 2
    whole_layers = {k for k in quick if k.startswith("moe|looped")}
    assert whole_layers <= full


def test_partial_survives_a_torn_line(tmp_path):
    path = tmp_path / "partial.jsonl"
    one = Partial(path, HEADER)
    one.add(Record("a", 0, (1.0, 2.0), (0, 0), {"n_experts_hit": 2.0}, 7))
    with path.open("a") as file:
        file.write('{"key":"b","rou')
    again = Partial(path, HEADER)
    assert again.records == one.records
    again.add(Record("b", 0, (3.0,)))
    assert [r.key for r in Partial(path, HEADER).records] == ["a", "b"]


def test_partial_of_only_a_torn_header_starts_over(tmp_path):
    path = tmp_path / "partial.jsonl"
    path.write_text('{"header":{"dev')
    Partial(path, HEADER).add(Record("a", 0, (1.0,)))
    assert [r.key for r in Partial(path, HEADER).records] == ["a"]


@pytest.mark.parametrize("change", [{"device_name": "y"}, {"seed": 1}, {"layer": "a:b"}, {"n_threads": 2}])
def test_partial_of_another_profile_is_refused(tmp_path, change):
    Partial(tmp_path / "p", HEADER)
    with pytest.raises(InputError, match=r"started differently.*another --out folder"):
        Partial(tmp_path / "p", HEADER | change)


@pytest.mark.parametrize("text", ["junk\n", '{"a":1}\n', '{"header":{}}\n{"key":1}\n'])
def test_partial_that_is_something_else(tmp_path, text):
    (tmp_path / "p").write_text(text)
    with pytest.raises(InputError, match=r"not a partial profile|started differently"):
        Partial(tmp_path / "p", HEADER)


def test_failed_points_are_not_tried_again(tmp_path):
    partial = Partial(tmp_path / "p", HEADER)
    partial.add(Record("a", 0, error="out of memory"))
    partial.add(Record("b", 0, (1.0,)))
    partial.add(Record("b", 1, (1.0,)))
    assert partial.done()["b"] == 2
    assert partial.done()["a"] > 100


def test_points_that_ran_out_of_time_are_tried_when_it_goes_on(tmp_path):
    Partial(tmp_path / "p", HEADER).add(Record("a", 0, error="no answer within 3 s"))
    assert "a" not in Partial(tmp_path / "p", HEADER).done()


def test_estimates_do_not_depend_on_order():
    rng = np.random.default_rng(0)
    samples = tuple(rng.exponential(size=20))
    assert estimate([Record("a", 0, samples)]) == estimate([Record("a", 0, samples[::-1])])
