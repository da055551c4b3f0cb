"""One piece scales links for sweeps and for break-even curves, and measured collectives go with them."""

import numpy as np
import pytest

from moesim.cost import CostModel
from moesim.ops import CollectiveShape, Op, OpKind, Work
from moesim.specs.catalog import load_hardware
from moesim.specs.dtypes import Dtype
from moesim.specs.scenario import FlipAxis, SystemKind, SystemSpec
from moesim.specs.workload import WorkloadSpec
from moesim.study.calibrated import calibration_for
from moesim.study.flips import flip_curves
from moesim.study.links import scaled_cost
from moesim.study.resolve import resolve_model
from moesim.study.systems import build_system

HARDWARE = load_hardware("hgx_h200")


def all_reduce(n_bytes: float) -> Op:
    return Op(
        "r", OpKind.ALL_REDUCE, Work(0.0, n_bytes, n_bytes), CollectiveShape(8, n_bytes), Dtype.BF16, "communication"
    )


@pytest.mark.parametrize("calibration", ["none", None])
def test_slower_links_lengthen_collectives_by_their_link_part(calibration: str | None) -> None:
    cost = CostModel.of(HARDWARE, calibration_for(calibration, HARDWARE.device.name))
    for n_bytes in (2.0**14, 2.0**27):
        before, after = cost.cost(all_reduce(n_bytes)), scaled_cost(cost, 0.25, 1.0).cost(all_reduce(n_bytes))
        assert after.link_s == pytest.approx(4.0 * before.link_s, rel=0.02)
        assert after.time_s - after.link_s == pytest.approx(before.time_s - before.link_s, rel=0.02)


def test_the_break_even_curve_of_a_calibrated_system_depends_on_its_links() -> None:
    calibration = calibration_for(None, HARDWARE.device.name)
    rng = np.random.default_rng(0)
    systems = []
    for name, kind, split in (
        ("mixtral-8x7b", SystemKind.MOE, {"tp_size": 8}),
        ("llama-2-70b", SystemKind.DENSE, {"tp_size": 8}),
    ):
        spec = SystemSpec(name=name, kind=kind, model=name, parallel=split)  # type: ignore[arg-type]
        systems.append(build_system(spec, resolve_model(spec), HARDWARE, calibration, rng))
    workload = WorkloadSpec(input_tokens=1024, output_tokens=128)
    curve = flip_curves(systems[0], systems[1:], HARDWARE, workload, 64, FlipAxis.LINK_BANDWIDTH, 0)[0]
    ratios = [r for r in curve.usd_ratio if r is not None]
    # 80 layers of all-reduces against 32: slow links favour the model with fewer
    assert ratios[0] > 1.3 * ratios[-1]
