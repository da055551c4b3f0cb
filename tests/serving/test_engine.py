from __future__ import annotations

import numpy as np
import pytest
from serving_stage import LinearCost, books, serve, some_requests

from moesim.sim.serving.cluster import RouterKind, Transfer
from moesim.sim.serving.engine import Overheads
from moesim.sim.serving.rank import Limits, Speculation
from moesim.sim.serving.requests import Outcome, Request

HOST = Overheads(pass_s=2e-4, host_s=3e-4, prefill_s=1e-4, request_s=5e-4, first_pass_s=0.01)
CASES = {
    "light": {},
    "heavy": {"limits": Limits(8, 256)},
    "host overheads": {"overheads": HOST},
    "noise per pass": {"cost": LinearCost(noise=1e-6)},
    "synchronous": {"overlapped": False, "overheads": HOST},
    "preemption": {"blocks": 80, "limits": Limits(32, 512)},
    "no chunks": {"limits": Limits(16, 1024, None, False)},
    "sglang": {"policy": "sglang", "limits": Limits(16, 512)},
    "sglang short of blocks": {"policy": "sglang", "blocks": 100},
    "trtllm": {"policy": "trtllm", "blocks": 100},
    "static": {"policy": "static", "limits": Limits(8, 512)},
    "data parallel": {"dp": 3, "limits": Limits(8, 256)},
    "replicas": {"replicas": 3, "router": RouterKind.LEAST_LOADED},
    "disaggregated": {"replicas": 2, "decoders": 2, "transfer": Transfer(1e5, 1e9, 1e-3)},
    "disaggregated, short of blocks": {"decoders": 1, "blocks": 70},
    "disaggregated, one pass at a time": {"decoders": 2, "overlapped": False, "overheads": HOST},
    "disaggregated static": {"decoders": 1, "policy": "static", "limits": Limits(8, 512)},
    "disaggregated, all reserved": {"decoders": 1, "policy": "trtllm", "blocks": 100},
    "speculation, all reserved": {"speculation": Speculation(2, 0.6), "policy": "trtllm", "blocks": 100},
    "speculation": {"speculation": Speculation(3, 0.7)},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_jumps_equal_single_passes(name, seed):
    requests = some_requests(seed=seed, shared=3)
    jumped, _ = serve(requests, jump=True, **CASES[name])
    stepped, _ = serve(requests, jump=False, **CASES[name])
    (a, outcomes), (b, other) = books(jumped), books(stepped)
    assert outcomes == other
    assert jumped.totals.passes == stepped.totals.passes
    for column in a:
        np.testing.assert_array_equal(a[column], b[column], err_msg=column)


@pytest.mark.parametrize("name", CASES)
def test_every_request_ends_with_all_its_tokens_once(name):
    requests = some_requests(seed=2, shared=3)
    recorder, cluster = serve(requests, **CASES[name])
    assert recorder.totals.finished == recorder.totals.submitted == len(requests)
    assert len(recorder.ids) == len(set(recorder.ids)) == len(requests)
    for engine in (*cluster.engines, *cluster.decoders):
        assert engine.n_unfinished == 0
        for rank in engine.ranks:
            assert rank.pool.n_free == rank.pool.n_blocks
            assert rank.n_unfinished == 0
    t = {k: np.asarray(v) for k, v in recorder.times.items()}
    assert (t["ttft_s"] > 0).all()
    assert (t["first_token_s"] <= t["finish_s"]).all()
    assert (t["queued_s"] >= t["arrival_s"]).all()


def test_without_preemption_decode_steps_are_tokens_minus_one():
    requests = some_requests(seed=3)
    recorder, _ = serve(requests)
    assert recorder.totals.decode_tokens == sum(r.output_tokens - 1 for r in requests)
    assert recorder.totals.prefill_tokens == sum(r.input_tokens for r in requests)
    assert recorder.gaps.total == recorder.totals.decode_tokens
    assert recorder.bins.rows()["output_tokens"].sum() == sum(r.output_tokens for r in requests)
    assert recorder.bins.rows()["finished"].sum() == len(requests)


def test_one_request_by_hand():
    recorder, _ = serve([Request("0", 1.0, 100, 3)])
    prefill = 1e-3 + 1e-5 * 100
    decode = sum(1e-3 + 1e-5 + 1e-9 * context for context in (101, 102))
    columns, _ = books(recorder)
    assert columns["ttft_s"][0] == pytest.approx(prefill, rel=1e-9)
    assert columns["e2e_s"][0] == pytest.approx(prefill + decode, rel=1e-9)
    assert columns["tpot_s"][0] == pytest.approx(decode / 2, rel=1e-9)


def test_a_long_prompt_is_cut_at_the_budget_with_decodes_first():
    # The second prompt meets one decode: chunks of 255 tokens beside it.
    requests = [Request("0", 0.0, 10, 50), Request("1", 0.0015, 700, 1)]
    recorder, _ = serve(requests, limits=Limits(8, 256))
    assert recorder.totals.prefill_tokens == 710
    columns, _ = books(recorder)
    passes = [1e-3 + 1e-5 * 256] * 2 + [1e-3 + 1e-5 * (700 - 2 * 255 + 1)]
    # passes 1 and 2 were scheduled before the second prompt was seen at the end of pass 1
    start = 1e-3 + 1e-5 * 10 + 2 * (1e-3 + 1e-5)
    assert columns["first_token_s"][1] == pytest.approx(start + sum(passes), rel=1e-4)


def test_a_done_sequence_keeps_its_slot_until_its_last_pass_ends():
    """Asynchronous scheduling: the next prompt starts two passes after the last one of what it waited for was scheduled."""
    requests = [Request("0", 0.0, 10, 4), Request("1", 0.0, 10, 1)]
    recorder, _ = serve(requests, limits=Limits(1, 256))
    columns, _ = books(recorder)
    end_of_first = columns["finish_s"][0]
    assert columns["first_token_s"][1] == pytest.approx(end_of_first + 1e-3 + 1e-4, rel=1e-9)
    assert columns["queue_s"][1] == pytest.approx(end_of_first, rel=1e-9)


def test_preempted_sequences_are_recomputed_and_counted():
    requests = [Request(str(i), 0.0, 100, 100) for i in range(6)]
    recorder, _ = serve(requests, blocks=60)
    assert recorder.totals.preemptions > 0
    assert recorder.totals.finished == 6
    assert recorder.totals.prefill_tokens > 600
    roomy, _ = serve(requests, blocks=6000)
    assert roomy.totals.preemptions == 0
    assert max(recorder.times["finish_s"]) > max(roomy.times["finish_s"])


def test_no_evict_policy_never_preempts():
    requests = [Request(str(i), 0.0, 100, 100) for i in range(6)]
    recorder, _ = serve(requests, blocks=60, policy="trtllm")
    assert recorder.totals.preemptions == 0


def test_shared_prefixes_are_computed_once():
    requests = [Request(str(i), 0.2 * i, 320, 2, tuple(range(16)), 16) for i in range(5)]
    recorder, cluster = serve(requests)
    assert recorder.totals.prefill_tokens == 320 + 4 * (320 - 256)
    assert sorted(recorder.counts["cached_tokens"]) == [0, 256, 256, 256, 256]
    without, _ = serve(requests, caching=False)
    assert without.totals.prefill_tokens == 5 * 320
    assert cluster.engines[0].ranks[0].pool.n_hit_tokens == 4 * 256


def test_data_parallel_ranks_wait_for_the_slowest():
    # One rank prefills 500 tokens, the other 10: both see the long pass.
    requests = [Request("0", 0.0, 500, 2), Request("1", 0.0, 10, 2)]
    recorder, _ = serve(requests, dp=2)
    columns, _ = books(recorder)
    assert columns["first_token_s"][0] == columns["first_token_s"][1] == pytest.approx(1e-3 + 5e-3)


def test_kv_transfer_delays_the_second_token_only():
    requests = [Request("0", 0.0, 100, 5)]
    near, _ = serve(requests, decoders=1, transfer=Transfer(0.0, 1e9, 0.0))
    far, _ = serve(requests, decoders=1, transfer=Transfer(1e6, 1e9, 0.05))
    a, b = books(near)[0], books(far)[0]
    assert a["ttft_s"][0] == b["ttft_s"][0]
    assert b["e2e_s"][0] - a["e2e_s"][0] == pytest.approx(0.05 + 100 * 1e6 / 1e9)


def test_one_prefill_link_carries_one_prompt_at_a_time():
    requests = [Request(str(i), 0.0, 100, 2) for i in range(3)]
    recorder, cluster = serve(requests, decoders=1, transfer=Transfer(1e6, 1e9, 0.0))
    assert cluster.n_transferred_tokens == 300
    assert max(recorder.times["finish_s"]) > 3 * 0.1


def test_closed_loop_keeps_its_number_in_flight():
    requests = [Request(str(i), 0.0, 50, 20) for i in range(40)]
    recorder, _ = serve(requests, concurrency=4)
    columns, _ = books(recorder)
    events = sorted([(t, 1) for t in columns["arrival_s"]] + [(t, -1) for t in columns["finish_s"]])
    level, most = 0, 0
    for _, change in sorted(events, key=lambda e: (e[0], e[1])):
        level += change
        most = max(most, level)
    assert most == 4
    assert recorder.totals.finished == 40


def test_speculation_saves_steps_as_its_acceptance_says():
    requests = [Request(str(i), 0.0, 20, 400) for i in range(32)]
    plain, _ = serve(requests)
    drafted, _ = serve(requests, speculation=Speculation(3, 0.8))
    expected = (1 - 0.8**4) / (1 - 0.8)
    assert plain.totals.passes / drafted.totals.passes == pytest.approx(expected, rel=0.12)
    assert Speculation(3, 1.0).tokens_per_step == 4.0


def test_rejections_are_marked_and_counted():
    requests = [
        Request("0", 0.0, 0, 5), Request("1", 0.0, 5, 0), Request("2", 0.0, 900, 200), Request("3", 0.0, 100, 10),
    ]  # fmt: skip
    recorder, _ = serve(requests, blocks=40, limits=Limits(8, 512, 1000))
    assert dict(zip(recorder.ids, recorder.outcomes, strict=True)) == {
        "0": Outcome.REJECTED_EMPTY, "1": Outcome.REJECTED_EMPTY, "2": Outcome.REJECTED_CONTEXT, "3": Outcome.FINISHED,
    }  # fmt: skip
    recorder, _ = serve([Request("0", 0.0, 900, 20)], blocks=40)
    assert recorder.outcomes == [Outcome.REJECTED_KV]
    t = recorder.totals
    assert (t.submitted, t.finished, t.rejected) == (1, 0, 1)


def test_static_batches_start_together_and_do_not_refill():
    requests = [Request("0", 0.0, 10, 2), Request("1", 0.0, 10, 50), Request("2", 0.0, 10, 2)]
    recorder, _ = serve(requests, policy="static", limits=Limits(2, 512))
    columns, _ = books(recorder)
    assert columns["queue_s"][2] >= columns["finish_s"][1]


def test_sglang_runs_prompts_apart_from_decodes():
    seen = []

    class Watch(LinearCost):
        def pass_s(self, works, pass_index):
            seen.extend((w.n_decode, w.n_prefill_tokens) for w in works)
            return super().pass_s(works, pass_index)

    serve(some_requests(seed=4), policy="sglang", cost=Watch())
    assert seen
    assert all(not (n and q) for n, q in seen)


def test_mean_wait_of_a_single_slot_follows_pollaczek_khinchine():
    """One slot, equal requests, Poisson arrivals: an M/D/1 queue (within what passes of whole steps allow)."""
    rng = np.random.default_rng(1)
    service, n = 1e-3 + 1e-4 + 9 * (1e-3 + 1e-5), 20_000
    rate = 0.7 / service
    at = np.cumsum(rng.exponential(1 / rate, n))
    requests = [Request(str(i), float(t), 10, 10) for i, t in enumerate(at)]
    recorder, _ = serve(requests, limits=Limits(1, 512), overlapped=False)
    wait = float(np.mean(recorder.times["queue_s"]))
    assert wait == pytest.approx(0.7 * service / (2 * (1 - 0.7)), rel=0.08)
