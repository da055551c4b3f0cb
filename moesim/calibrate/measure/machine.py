"""The machine that was measured, in words and numbers that say nothing about whose it is."""

from __future__ import annotations

import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from moesim._version import __version__
from moesim.errors import InputError

__all__ = [
    "catalog_name",
    "describe",
    "device_name",
    "last_level_cache_bytes",
    "native_dtype",
    "pick_device",
    "today",
    "torch_dtype",
]

# Words of CUDA's device names and the catalog's names, the more special ones first.
_CATALOG = (
    (r"B300", "b300_sxm"), (r"GB300", "gb300"), (r"GB200", "gb200"), (r"B200", "b200_sxm"),
    (r"H200", "h200_sxm"), (r"H100.*PCIe", "h100_pcie"), (r"H100", "h100_sxm"), (r"H800", "h800_sxm"), (r"H20\b", "h20_sxm"),
    (r"A100.*PCIE.*40GB", "a100_pcie_40gb"), (r"A100.*PCIE", "a100_pcie"), (r"A100.*SXM4-40GB", "a100_sxm_40gb"),
    (r"A100", "a100_sxm"), (r"A800", "a800_sxm"), (r"L40S", "l40s"), (r"\bL4\b", "l4"), (r"RTX PRO 6000", "rtx_pro_6000"),
    (r"RTX 4090", "rtx_4090"), (r"RTX 3090", "rtx_3090"),
)  # fmt: skip
_DEFAULT_CACHE_BYTES = 32 << 20
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def pick_device(name: str) -> torch.device:
    """The torch device for auto, cpu, cuda or cuda:N.

    Raises:
        InputError: another word, or no such GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError("unknown device", field="device", value=name, allowed="auto, cpu, cuda, cuda:N")
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise InputError("this PyTorch sees no CUDA GPU", field="device", value=name, hint="use --device cpu")
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise InputError("no such GPU", field="device", value=name, allowed=f"0..{torch.cuda.device_count() - 1}")
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    return device


def device_name(device: torch.device) -> str:
    """What the maker calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    found = re.search(r"model name\s*:\s*(.+)", _read("/proc/cpuinfo"))
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def catalog_name(device: torch.device, n_threads: int = 1) -> str:
    """The catalog's name of a GPU, or one made from the maker's words; of a CPU always one of its own, with the threads used."""
    if device.type == "cpu":
        return cpu_name(device_name(device), n_threads)
    return _catalog_of(device_name(device))


def cpu_name(words: str, n_threads: int) -> str:
    """A name for so many cores of a CPU.

    >>> cpu_name("Intel(R) Xeon(R) Gold 6454S CPU @ 2.20GHz", 4)
    'cpu_intel_xeon_gold_6454s_4core'
    """
    short = re.sub(r"\(R\)|\(TM\)|@.*|\bCPU\b|\bProcessor\b|\d+-Core", " ", words, flags=re.IGNORECASE)
    return "_".join(["cpu", *re.findall(r"[a-z0-9]+", short.lower()), f"{n_threads}core"])


def _catalog_of(name: str) -> str:
    for pattern, known in _CATALOG:
        if re.search(rf"(?<![A-Z]){pattern}" if pattern[0] != "\\" else pattern, name, re.IGNORECASE):
            return known
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def native_dtype(device: torch.device) -> str:
    """bf16 where the device multiplies in it, else fp32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    flags = _read("/proc/cpuinfo")
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags or re.search(r"\bbf16\b", flags) else "fp32"


def torch_dtype(name: str) -> torch.dtype:
    """The torch type of a format's name."""
    return _DTYPES[name]


def last_level_cache_bytes(device: torch.device) -> int:
    """Size of the largest cache; 32 MiB where it cannot be found (assumption)."""
    if device.type == "cuda":
        size = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
        return int(size) or _DEFAULT_CACHE_BYTES
    sizes = [_cache_size(path) for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max(sizes, default=0) or _DEFAULT_CACHE_BYTES


def today() -> str:
    """The date, UTC."""
    return datetime.now(UTC).date().isoformat()


def describe(device: torch.device) -> dict[str, Any]:
    """Versions, clocks and sizes, for the metadata of a profile."""
    facts: dict[str, Any] = {
        "device_name": device_name(device),
        "n_cores": os.cpu_count(),
        "n_threads": torch.get_num_threads(),
        "last_level_cache_bytes": last_level_cache_bytes(device),
        "torch_version": torch.__version__,
        "python_version": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "moesim_version": __version__,
        "load_average": _load_average(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "cuda_version": torch.version.cuda,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "n_compute_units": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "clock_hz": _cuda_clock_hz(device),
        }
    else:
        capability = torch.backends.cpu.get_cpu_capability()
        facts |= {"clock_hz": _cpu_clock_hz(), "cpu_capability": capability, "memory_bytes": _memory_bytes()}
    return facts


def _cuda_clock_hz(device: torch.device) -> float | None:
    try:
        return float(torch.cuda.clock_rate(device)) * 1e6
    except (ModuleNotFoundError, RuntimeError, AttributeError):  # needs NVIDIA's management library
        return None


def _cpu_clock_hz() -> float | None:
    found = re.search(r"cpu MHz\s*:\s*([\d.]+)", _read("/proc/cpuinfo"))
    return float(found.group(1)) * 1e6 if found else None


def _memory_bytes() -> int:
    found = re.search(r"MemTotal:\s*(\d+) kB", _read("/proc/meminfo"))
    return int(found.group(1)) * 1024 if found else 8 << 30  # assumption, where the system does not say


def _load_average() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):
        return None


def _cache_size(path: Path) -> int:
    found = re.fullmatch(r"(\d+)([KM]?)\s*", _read(str(path)))
    return int(found.group(1)) * {"": 1, "K": 1 << 10, "M": 1 << 20}[found.group(2)] if found else 0


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
