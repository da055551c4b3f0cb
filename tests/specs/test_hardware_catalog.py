"""The shipped devices, links and clusters: complete, sourced, physically sane, and equal to independent figures."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from moesim.specs import catalog
from moesim.specs.base import Origin
from moesim.specs.hardware import DeviceSpec

ROOT = Path(__file__).resolve().parents[2]
SHARED_CSV = ROOT / ".." / "shared" / "data" / "hardware.csv"
FOLDERS = {"device": "devices", "link": "links", "cluster": "clusters"}
LOADERS = {"device": catalog.load_device, "link": catalog.load_link, "cluster": catalog.load_cluster}
FILES = [
    (kind, path) for kind, folder in FOLDERS.items() for path in sorted((ROOT / "hardware" / folder).glob("*.yaml"))
]
DEVICES = [path.stem for kind, path in FILES if kind == "device"]
CLUSTERS = [path.stem for kind, path in FILES if kind == "cluster"]
LINKS = [path.stem for kind, path in FILES if kind == "link"]
CPUS = {"cpu_epyc_1core", "cpu_generic", "xeon_6454s_2s"}
LABELS = {"sources", "name", "aliases", "form", "note"}
ORIGINS = {origin.value for origin in Origin}
# Text such as "80 GB", "3.5 us", "1.83 GHz": a number and a unit.
QUANTITY = re.compile(r"^[0-9][0-9.e+-]*\s*[A-Za-z$/]+$")


def raw(kind: str, name: str) -> dict[str, Any]:
    """The file as plain YAML, read without moesim."""
    data = YAML(typ="safe").load((ROOT / "hardware" / FOLDERS[kind] / f"{name}.yaml").read_text(encoding="utf-8"))
    assert isinstance(data, dict)
    return data


def raw_numbers(value: object, path: str = "") -> Iterator[str]:
    """Dotted paths of everything in a YAML file that is a number or a number with a unit."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from raw_numbers(inner, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from raw_numbers(inner, f"{path}.{i}")
    elif isinstance(value, (int, float)) or (isinstance(value, str) and QUANTITY.match(value)):
        yield path


# ---------------------------------------------------------------- what is there


def test_the_catalog_is_large_enough() -> None:
    assert len(DEVICES) >= 32
    assert len(LINKS) >= 31
    assert len(CLUSTERS) >= 40


def test_the_catalog_covers_the_families_asked_for() -> None:
    asked = "a100_sxm a100_pcie h100_sxm h100_pcie h200_sxm h800_sxm h20_sxm b200_sxm b300_sxm gb200 gb300 l4 l40s rtx_4090 "
    asked += "rtx_pro_6000 mi250x mi300x mi325x mi355x gaudi2 gaudi3 tpu_v4 tpu_v5e tpu_v5p tpu_v6e tpu_v7 trainium2 cpu_generic"
    assert set(asked.split()) <= set(DEVICES)
    assert {str(catalog.load_link(name).kind) for name in LINKS} >= {
        "nvlink",
        "xgmi",
        "pcie",
        "ici",
        "infiniband",
        "roce",
        "efa",
    }


@pytest.mark.parametrize(("kind", "path"), FILES, ids=lambda x: x.stem if isinstance(x, Path) else x)
def test_every_file_loads_under_its_own_name(kind: str, path: Path) -> None:
    assert getattr(LOADERS[kind](path.stem), "name", None) == path.stem
    assert raw(kind, path.stem)["name"] == path.stem


def test_names_and_aliases_are_unique_across_devices_and_clusters() -> None:
    owners: dict[str, str] = {}
    for kind, path in FILES:
        if kind == "link":
            continue
        for name in (path.stem, *raw(kind, path.stem).get("aliases", [])):
            assert name.lower() not in owners, f"{name} is both {path.stem} and {owners[name.lower()]}"
            owners[name.lower()] = path.stem


@pytest.mark.parametrize("name", DEVICES)
def test_devices_answer_to_their_aliases(name: str) -> None:
    for alias in catalog.load_device(name).aliases:
        assert catalog.load_device(alias).name == name


# ---------------------------------------------------------------- every number has a source


@pytest.mark.parametrize(("kind", "path"), FILES, ids=lambda x: x.stem if isinstance(x, Path) else x)
def test_every_number_of_the_file_has_one_source(kind: str, path: Path) -> None:
    data = raw(kind, path.stem)
    covers = [covered for source in data["sources"] for covered in source["covers"]]
    assert len(covers) == len(set(covers)), "a path is covered twice"
    numbers = list(raw_numbers({key: value for key, value in data.items() if key not in LABELS}))
    assert len(numbers) >= 3
    for number in numbers:
        assert any(number == c or number.startswith(c + ".") for c in covers), f"{number} has no source"
    for source in data["sources"]:
        assert source["origin"] in ORIGINS
        assert len(source["text"].split()) >= 2


def test_the_walk_over_raw_yaml_sees_quantities_and_counts() -> None:
    sample = {"a": "80 GB", "b": {"c": 3, "d": "text 5"}, "e": [1.5], "f": "2 sockets of 3"}
    assert list(raw_numbers(sample)) == ["a", "b.c", "e.0"]


@pytest.mark.parametrize("name", DEVICES)
def test_what_nobody_publishes_is_not_called_a_data_sheet(name: str) -> None:
    device = catalog.load_device(name)
    if device.idle_power_w is not None and name != "tpu_v4":  # Google documents that chip's minimum power
        assert device.source_of("idle_power_w").origin in {Origin.MEASURED, Origin.SECONDARY, Origin.ASSUMPTION}
    if device.price_usd_per_h is not None:
        assert device.source_of("price_usd_per_h").origin is not Origin.DATASHEET


# ---------------------------------------------------------------- clusters resolve


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_cluster_resolves(name: str) -> None:
    spec, hardware = catalog.load_cluster(name), catalog.load_hardware(name)
    assert hardware.n_devices == spec.n_devices_per_node * spec.n_nodes
    assert hardware.n_devices % spec.scale_up_domain_size == 0
    assert hardware.scale_up is not None
    assert hardware.price_usd_per_device_h
    assert hardware.host_memory_bytes_per_device
    assert hardware.n_domains == hardware.n_devices // spec.scale_up_domain_size
    if spec.n_rails is not None:
        assert spec.scale_out_link is not None
        assert spec.n_nics_per_node == spec.n_rails


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_cluster_agrees_with_its_device(name: str) -> None:
    spec, hardware = catalog.load_cluster(name), catalog.load_hardware(name)
    device = hardware.device
    assert spec.scale_up_link == device.scale_up_link
    if hardware.nic_bytes_per_s is not None and device.nic_bytes_per_s is not None:
        assert hardware.nic_bytes_per_s == pytest.approx(device.nic_bytes_per_s)
    host_share = hardware.host_memory_bytes_per_device
    assert host_share is not None
    assert device.host_memory_bytes is not None
    assert 0.5 <= host_share / device.host_memory_bytes <= 2


@pytest.mark.parametrize(
    ("name", "n_devices", "n_domains"),
    [("h100_x12_nodes", 96, 12), ("h800_x22_nodes", 176, 22), ("h800_x40_nodes", 320, 40), ("h200_x2_nodes", 16, 2),
     ("h100_x128_nodes", 1024, 128), ("gb200_nvl72", 72, 1), ("trn2_ultra", 64, 1), ("rtx_pro_6000_2", 2, 1),
     ("tpu_v5p_pod", 8960, 1)],
)  # fmt: skip
def test_cluster_sizes(name: str, n_devices: int, n_domains: int) -> None:
    hardware = catalog.load_hardware(name)
    assert (hardware.n_devices, hardware.n_domains) == (n_devices, n_domains)


@pytest.mark.parametrize("name", DEVICES)
def test_every_bare_device_resolves(name: str) -> None:
    hardware = catalog.load_hardware(name)
    assert hardware.n_devices == 1
    assert hardware.scale_up is not None
    assert catalog.load_hardware(name, hardware.scale_up_domain_size).n_domains == 1


# ---------------------------------------------------------------- physical sanity


@pytest.mark.parametrize("name", DEVICES)
def test_device_is_physically_sane(name: str) -> None:
    device = catalog.load_device(name)
    assert 8e9 <= device.memory_bytes <= 2e12
    assert 1 <= device.ridge_flop_per_byte <= 2000
    assert device.board_power_w is not None
    assert device.idle_power_w is not None
    assert 0 < device.idle_power_w < device.board_power_w / 2 + 1e-9
    assert device.host_link_bytes_per_s is not None
    assert 16e9 <= device.host_link_bytes_per_s < device.memory_bytes_per_s
    assert device.price_usd_per_h is not None
    assert 0.05 <= device.price_usd_per_h <= 20
    assert device.scale_up_link is not None
    assert catalog.load_link(device.scale_up_link).bytes_per_s < device.memory_bytes_per_s
    # The whole memory is read in a few to a few hundred milliseconds on an accelerator; seconds on a CPU.
    assert 0.002 <= device.memory_bytes / device.memory_bytes_per_s <= (3 if name in CPUS else 0.2)


@pytest.mark.parametrize("name", DEVICES)
def test_narrower_arithmetic_is_not_slower(name: str) -> None:
    peak = catalog.load_device(name).peak_flop_per_s
    ladder = [rate for rate in (peak.fp32, peak.bf16, peak.fp8, peak.fp4) if rate is not None]
    assert ladder == sorted(ladder)
    if peak.bf16 and peak.fp8:  # L40S's sheet rounds (733 of 362.05); Trainium2 has 1299 of 667
        expected = {"gaudi3": 1.0, "tpu_v6e": 1.0, "trainium3": 2517 / 671}.get(name, 2.0)
        assert peak.fp8 / peak.bf16 == pytest.approx(expected, rel=0.03)
    if peak.fp8 and peak.fp4:
        assert peak.fp4 / peak.fp8 <= 3.2  # Blackwell Ultra: 14 against 4.5


@pytest.mark.parametrize("name", DEVICES)
def test_capacity_does_not_mix_decimal_and_binary(name: str) -> None:
    text, n_bytes = str(raw("device", name)["memory_bytes"]), catalog.load_device(name).memory_bytes
    if text.endswith("GiB"):
        assert n_bytes == pytest.approx(float(text.split()[0]) * 2**30)
        return
    assert n_bytes == pytest.approx(float(text.removesuffix(" GB")) * 1e9)
    power_of_two = 2.0 ** round(math.log2(n_bytes / 2**30))
    assert abs(n_bytes / (power_of_two * 2**30) - 1) > 0.005, "a power-of-two GiB written as GB"


# Dense BF16 operations per cycle and compute unit, by design. Sparse figures taken for dense ones would be twice this.
PER_CYCLE = {
    **dict.fromkeys(["a100_sxm", "a100_sxm_40gb", "a100_pcie", "a100_pcie_40gb", "a800_sxm"], 2048),
    **dict.fromkeys(["h100_sxm", "h100_pcie", "h200_sxm", "h800_sxm"], 4096),
    **dict.fromkeys(["b200_sxm", "b300_sxm"], 8192),
    **dict.fromkeys(["l4", "l40s", "rtx_pro_6000", "mi250x"], 1024),
    **dict.fromkeys(["rtx_4090", "rtx_3090"], 512),
    **dict.fromkeys(["mi300x", "mi325x", "arc_pro_b60", "xeon_6454s_2s"], 2048),
    "mi355x": 4096,
    **dict.fromkeys(["tpu_v4", "tpu_v5e", "tpu_v5p"], 4 * 128 * 128 * 2),
}


@pytest.mark.parametrize(("name", "per_cycle"), PER_CYCLE.items())
def test_peak_is_units_times_clock_times_operations_per_cycle(name: str, per_cycle: int) -> None:
    """A second way to the BF16 peak."""
    device = catalog.load_device(name)
    assert device.n_compute_units is not None
    assert device.boost_clock_hz is not None
    assert device.peak_flop_per_s.bf16 == pytest.approx(
        device.n_compute_units * device.boost_clock_hz * per_cycle, rel=0.015
    )


def test_the_export_version_is_cut_below_its_units() -> None:
    device = catalog.load_device("h20_sxm")
    assert device.peak_flop_per_s.bf16 is not None
    assert device.n_compute_units is not None
    assert device.boost_clock_hz is not None
    assert device.peak_flop_per_s.bf16 < 4096 * device.n_compute_units * device.boost_clock_hz / 3.5


@pytest.mark.parametrize("name", LINKS)
def test_link_is_physically_sane(name: str) -> None:
    link = catalog.load_link(name)
    assert 1e9 <= link.bytes_per_s <= 2e12
    assert 1e-7 <= link.message_overhead_s < link.latency_s <= 50e-6


@pytest.mark.parametrize(
    ("name", "n_ports", "port_bytes_per_s"),
    [("nvlink3", 12, 25e9), ("nvlink4", 18, 25e9), ("nvlink5", 18, 50e9), ("nvlink5_nvl72", 18, 50e9), ("nvlink4_h800", 8, 25e9),
     ("xgmi_mi300x", 7, 64e9), ("xgmi_mi355x", 7, 76.8e9), ("gaudi2_roce", 21, 12.5e9), ("gaudi3_roce", 21, 25e9),
     ("pcie4_x16", 16, 2e9), ("pcie5_x16", 16, 4e9), ("pcie5_x8", 8, 4e9), ("pcie6_x16", 16, 8e9), ("ici_v4", 6, 50e9),
     ("ici_v5e", 4, 50e9), ("ici_v5p", 6, 100e9), ("ici_v6e", 4, 100e9), ("ici_v7", 6, 100e9), ("infiniband_hdr", 1, 25e9),
     ("infiniband_ndr", 1, 50e9), ("infiniband_xdr", 1, 100e9)],
)  # fmt: skip
def test_link_rate_is_ports_times_port_rate_per_direction(name: str, n_ports: int, port_bytes_per_s: float) -> None:
    assert catalog.load_link(name).bytes_per_s == pytest.approx(n_ports * port_bytes_per_s)


# ---------------------------------------------------------------- against independently collected facts

SHARED_NAMES = {
    "A100-SXM4-40GB": "a100_sxm_40gb", "A100-SXM4-80GB": "a100_sxm", "A100-PCIe-40GB": "a100_pcie_40gb",
    "A100-PCIe-80GB": "a100_pcie", "A800-SXM-80GB": "a800_sxm", "H100-SXM5-80GB": "h100_sxm", "H100-PCIe-80GB": "h100_pcie",
    "H200-SXM-141GB": "h200_sxm", "H800-SXM-80GB": "h800_sxm", "H20-SXM-96GB": "h20_sxm", "B200-SXM-180GB": "b200_sxm",
    "B300-SXM-288GB": "b300_sxm", "GB200-NVL72 (per GPU)": "gb200", "GB300-NVL72 (per GPU)": "gb300", "L4": "l4", "L40S": "l40s",
    "RTX-4090": "rtx_4090", "RTX-3090": "rtx_3090", "RTX-PRO-6000-Blackwell-Server": "rtx_pro_6000", "MI250X": "mi250x",
    "MI300X": "mi300x", "MI325X": "mi325x", "MI355X": "mi355x", "Gaudi2": "gaudi2", "Gaudi3": "gaudi3", "TPU-v4": "tpu_v4",
    "TPU-v5e": "tpu_v5e", "TPU-v5p": "tpu_v5p", "TPU-v6e": "tpu_v6e", "TPU7x-Ironwood": "tpu_v7", "Trainium2": "trainium2",
    "Trainium3": "trainium3", "Arc-Pro-B60": "arc_pro_b60", "CPU-2x-Xeon-6454S": "xeon_6454s_2s",
}  # fmt: skip
NOT_OURS = {
    "CPU-2core-EPYC-VM": "a shared virtual machine, not a product",
    "CPU-i9-10900X": "a desktop CPU of one published test",
}
GIB_TEXT = "the maker states GiB; the CSV column says GB for the same number"
EXCEPTIONS = {
    ("gb200", "mem_gb"): "13.4 TB per rack / 72 is 186 GB; 189 is the driver's MiB divided by 1000",
    ("gb300", "mem_gb"): "288 GB as announced; 284 is the driver's MiB divided by 1000",
    ("rtx_pro_6000", "mem_bw_TBs"): "1597 GB/s is the Server Edition's data sheet; 1792 is the Workstation Edition's",
    (
        "rtx_pro_6000",
        "bf16_dense_TFLOPS",
    ): "the data sheet's peak (120 TFLOP/s FP32 x 4), not one host's 2430 MHz limit",
    ("rtx_pro_6000", "fp8_dense_TFLOPS"): "as bf16",
    ("rtx_pro_6000", "int8_dense_TOPS"): "as bf16",
    ("rtx_pro_6000", "fp4_dense_TFLOPS"): "as bf16",
    ("arc_pro_b60", "fp8_dense_TFLOPS"): "no FP8 arithmetic; the CSV gives the BF16 fallback",
    ("arc_pro_b60", "scaleup_GBs_unidir_per_dev"): "line rate; the CSV's 28.4 is after packet headers",
    ("mi355x", "bf16_dense_TFLOPS"): "256 CUs x 4096 x 2.4 GHz is 2516.6; the CSV rounds to 2500",
    ("mi355x", "fp8_dense_TFLOPS"): "as bf16",
    ("mi355x", "int8_dense_TOPS"): "as bf16",
    ("trainium3", "scaleup_GBs_unidir_per_dev"): "AWS states 2.56 TB/s per device, both directions; halved",
    ("mi250x", "scaleup_domain"): "modules per node; the CSV counts the two dies of each",
    ("rtx_4090", "scaleup_domain"): "a PCIe box counts as one domain",
    ("rtx_3090", "scaleup_domain"): "a PCIe box counts as one domain",
    ("xeon_6454s_2s", "scaleup_domain"): "both sockets are one device here",
}
NIC_UNIT = 1e9 / 8


def our_figures(device: DeviceSpec) -> dict[str, float | None]:
    """Our device in the units of the CSV."""
    peak = device.peak_flop_per_s
    link = catalog.load_link(device.scale_up_link).bytes_per_s if device.scale_up_link else None
    in_gib = str(raw("device", device.name)["memory_bytes"]).endswith("GiB")  # see GIB_TEXT

    def tera(rate: float | None) -> float | None:
        return None if rate is None else rate / 1e12

    return {
        "year": device.year,
        "mem_gb": device.memory_bytes / (2**30 if in_gib else 1e9),
        "mem_bw_TBs": device.memory_bytes_per_s / 1e12,
        "bf16_dense_TFLOPS": tera(peak.bf16),
        "fp8_dense_TFLOPS": tera(peak.fp8),
        "int8_dense_TOPS": tera(peak.int8),
        "fp4_dense_TFLOPS": tera(peak.fp4),
        "scaleup_GBs_unidir_per_dev": None if link is None else link / 1e9,
        "scaleup_domain": device.scale_up_domain_size,
        "nic_Gbps_per_dev": None if device.nic_bytes_per_s is None else device.nic_bytes_per_s / NIC_UNIT,
        "host_link_GBs_unidir": None if device.host_link_bytes_per_s is None else device.host_link_bytes_per_s / 1e9,
        "tdp_W": device.board_power_w,
        "cloud_usd_per_h": device.price_usd_per_h,
    }


def disagreements() -> set[tuple[str, str]]:
    """(device, column) where the CSV has a figure and ours is missing or more than 0.5% off."""
    found = set()
    with SHARED_CSV.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            if row["name"] in NOT_OURS:
                continue
            ours = our_figures(catalog.load_device(SHARED_NAMES[row["name"]]))
            for column, mine in ours.items():
                if row[column] and (mine is None or abs(mine - float(row[column])) > 0.005 * float(row[column])):
                    found.add((SHARED_NAMES[row["name"]], column))
    return found


@pytest.mark.skipif(not SHARED_CSV.is_file(), reason="../shared/data/hardware.csv is not beside this checkout")
def test_figures_equal_the_shared_facts_or_the_exception_is_named() -> None:
    found = disagreements()
    assert found - set(EXCEPTIONS) == set(), "differs from the shared figure without a reason"
    assert set(EXCEPTIONS) - found == set(), "an exception that is not needed any more"


@pytest.mark.skipif(not SHARED_CSV.is_file(), reason="../shared/data/hardware.csv is not beside this checkout")
def test_every_shared_device_is_in_the_catalog_or_left_out_for_a_reason() -> None:
    with SHARED_CSV.open(encoding="utf-8", newline="") as stream:
        names = {row["name"] for row in csv.DictReader(stream)}
    assert names <= set(SHARED_NAMES) | set(NOT_OURS)
    assert set(SHARED_NAMES.values()) <= set(DEVICES)
