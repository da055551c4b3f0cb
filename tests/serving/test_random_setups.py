"""Random schedulers, limits, pools and workloads: nothing stalls, nothing is lost, and jumps equal single passes."""

from __future__ import annotations

import numpy as np
import pytest
from serving_stage import books, serve, some_requests

from moesim.sim.serving.cluster import RouterKind
from moesim.sim.serving.engine import Overheads
from moesim.sim.serving.rank import Limits, Speculation


def setup(seed):
    rng = np.random.default_rng(seed)
    policy = str(rng.choice(["vllm", "sglang", "trtllm", "static"]))
    limits = Limits(int(rng.integers(1, 40)), int(rng.choice([64, 256, 1000])), None, bool(rng.random() < 0.8))
    options = {
        "policy": policy, "limits": limits, "blocks": int(rng.integers(64, 200)), "dp": int(rng.integers(1, 4)),
        "overlapped": bool(rng.random() < 0.7), "caching": bool(rng.random() < 0.7),
    }  # fmt: skip
    if rng.random() < 0.3:
        options |= {"decoders": int(rng.integers(1, 3)), "replicas": int(rng.integers(1, 3))}
    elif rng.random() < 0.4:
        options |= {"replicas": 2, "router": RouterKind.LEAST_LOADED}
    if rng.random() < 0.2:
        options["speculation"] = Speculation(2, 0.6)
    if rng.random() < 0.3:
        options["overheads"] = Overheads(1e-4, 5e-4, 1e-4, 1e-6, 3e-4, 0.01)
    if rng.random() < 0.3:
        options["concurrency"] = int(rng.integers(1, 30))
    rate, shared = float(rng.choice([5, 50, 500])), int(rng.integers(0, 4))
    return some_requests(60, seed, rate, 900, 80, shared), options


@pytest.mark.parametrize("seed", [*range(40), 326])
def test_random_setup(seed):
    requests, options = setup(seed)
    jumped, cluster = serve(requests, jump=True, **options)
    stepped, _ = serve(requests, jump=False, **options)
    assert not cluster.alive
    (a, outcomes), (b, others) = books(jumped), books(stepped)
    assert outcomes == others
    assert jumped.totals.passes == stepped.totals.passes
    for column in a:
        np.testing.assert_array_equal(a[column], b[column], err_msg=column)
