"""A real scheduler with two worker processes on loopback."""

import os
import signal
import threading
import time

import pytest
from sweep_base import make
from test_sweep_run import AXES, same

from moesim.study.sweep import run_sweep

pytestmark = pytest.mark.filterwarnings("ignore")
distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed (extra 'dask')")


@pytest.fixture
def cluster():
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as found:
        yield found


def test_a_cluster_gives_the_same_answers_and_redoes_those_of_a_lost_worker(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("moesim.study.sweep.tasks.TASK_GROUPS", 1)
    flow = make(AXES, {"calibration": "none", "hardware": "h200_x2_nodes"}, engine="flow")
    analytic = make(AXES)
    same(run_sweep(analytic), run_sweep(analytic, scheduler=cluster.scheduler_address))
    with distributed.Client(cluster) as client:
        pids = client.run(os.getpid)
    assert len(set(pids.values())) == 2
    killed = []

    def kill_one(tick):
        if tick.n_done and not killed:
            killed.append(next(iter(pids.values())))
            threading.Thread(target=os.kill, args=(killed[0], signal.SIGKILL)).start()
            time.sleep(0.2)

    far = run_sweep(flow, scheduler=cluster.scheduler_address, out_dir=tmp_path, progress=kill_one)
    assert killed
    assert far.done.all()
    same(run_sweep(flow), far)
