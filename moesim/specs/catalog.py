"""The shipped devices, links, clusters and model cards, by name; and files of the user in the same forms."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from moesim.errors import CatalogError, InputError, nearest
from moesim.specs import hf
from moesim.specs.base import Frozen, Number, Sourced
from moesim.specs.fabric_files import find_fabric
from moesim.specs.hardware import ClusterSpec, DeviceSpec, Hardware, LinkSpec
from moesim.specs.json_text import line_of_field
from moesim.specs.load import line_of, read_json, read_text, read_yaml, validate
from moesim.specs.model import ModelSpec
from moesim.specs.variants import Variant, quantised, variant_of

__all__ = [
    "ModelCard",
    "data_dir",
    "load_card",
    "load_cluster",
    "load_device",
    "load_hardware",
    "load_link",
    "load_model",
    "names",
    "path_of",
]

Part = TypeVar("Part", DeviceSpec, LinkSpec)

_FOLDERS = {
    "device": "hardware/devices",
    "link": "hardware/links",
    "cluster": "hardware/clusters",
    "model": "scenarios/models",
    "scenario": "scenarios",
    "serving": "scenarios/serving",
    "sweep": "scenarios/sweeps",
    "router": "scenarios/routing",
}
#: ModelOpt's exports keep their quantisation in a file of their own, beside ``config.json``.
_BESIDE = "hf_quant_config.json"
_QUANTISATIONS = ("quantization_config", "quantization")


class Published(Frozen):
    """Parameter totals as the model's makers publish them."""

    n_params: Number | None = Field(default=None, gt=0)
    n_active_params: Number | None = Field(default=None, gt=0)


class ModelCard(Sourced):
    """A model in the catalog: the fields of its Hugging Face ``config.json`` that shape it, and published totals."""

    name: str
    hf_id: str | None = None
    aliases: tuple[str, ...] = ()
    released: str | None = None
    config: dict[str, Any]
    published: Published = Published()
    note: str | None = None

    def model_spec(self) -> ModelSpec:
        """The architecture that the card's `config` describes."""
        return hf.import_config(self.config, name=self.name, hf_id=self.hf_id)


@lru_cache(maxsize=1)
def data_dir() -> Path:
    """The folder that holds `hardware/` and `scenarios/`: inside an installed package, or a checkout's top level."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "_data"
    return inside if (inside / "hardware").is_dir() else package.parent


def names(kind: str) -> tuple[str, ...]:
    """Names in the catalog of one kind: device, link, cluster, model or scenario; sorted."""
    folder = data_dir() / _FOLDERS[kind]
    return tuple(sorted(path.stem for path in folder.glob("*.yaml")))


def path_of(kind: str, name: str) -> Path:
    """The file behind a catalog name, an alias, a Hugging Face id, or a path the user gives.

    Raises:
        CatalogError: no such name; nearest names are suggested.
        InputError: a path that does not exist.
    """
    if name.endswith((".yaml", ".yml", ".json")) or "\\" in name or name.startswith(("/", "./", "../", "~")):
        path = Path(os.path.expanduser(name))  # noqa: PTH111 (Path.expanduser raises for users that do not exist)
        return path / "config.json" if _is_file(path / "config.json") else path
    folder = data_dir() / _FOLDERS[kind]
    if re.fullmatch(r"[\w.+-]+", name) and _is_file(folder / f"{name}.yaml"):
        return folder / f"{name}.yaml"
    other = _other_names(kind)
    if name.lower() in other:
        return folder / f"{other[name.lower()]}.yaml"
    variant = _variant(name) if kind == "model" else None
    if variant is not None:
        return folder / f"{variant.base}.yaml"
    known = [*names(kind), *other]
    if name and _is_file(Path(name) / "config.json"):
        return Path(name) / "config.json"
    close = nearest(name, known)
    hint = f"did you mean {' or '.join(repr(c) for c in close)}?" if close else "see: moesim list"
    raise CatalogError(f"no {kind} of this name in the catalog", field=kind, value=name, hint=hint)


@lru_cache(maxsize=256)
def _variant(name: str) -> Variant | None:
    """What a checkpoint's name says of a model of the catalog; None for names in the catalog itself, and for files."""
    known = _other_names("model")
    return None if name.lower() in known else variant_of(name, known)


def _is_file(path: Path) -> bool:
    """False also for what cannot be a path at all (too long, a null character)."""
    with suppress(OSError, ValueError):
        return path.is_file()
    return False


@lru_cache(maxsize=8)
def _other_names(kind: str) -> Mapping[str, str]:
    """Lower-cased aliases and Hugging Face ids to catalog names, found without a full parse of every file."""
    found: dict[str, str] = {}
    for path in sorted((data_dir() / _FOLDERS[kind]).glob("*.yaml")):
        found.setdefault(path.stem.lower(), path.stem)
        for line in path.read_text(encoding="utf-8").splitlines():
            match = re.match(r"(hf_id|aliases):\s*(.+)", line)
            if match:
                for alias in re.split(r"[\[\],\s]+", match[2].strip()):
                    if alias.strip("'\""):
                        found.setdefault(alias.strip("'\"").lower(), path.stem)
    return found


@lru_cache(maxsize=256)
def load_device(name: str) -> DeviceSpec:
    """A device by catalog name, alias or file."""
    path = path_of("device", name)
    return validate(DeviceSpec, read_yaml(path), str(path))


@lru_cache(maxsize=256)
def load_link(name: str) -> LinkSpec:
    """A link by catalog name or file."""
    path = path_of("link", name)
    return validate(LinkSpec, read_yaml(path), str(path))


@lru_cache(maxsize=256)
def load_cluster(name: str) -> ClusterSpec:
    """A cluster by catalog name, alias or file."""
    path = path_of("cluster", name)
    return validate(ClusterSpec, read_yaml(path), str(path))


@lru_cache(maxsize=512)
def load_card(name: str) -> ModelCard:
    """A model card by catalog name, alias, Hugging Face id or YAML file."""
    path = path_of("model", name)
    card = validate(ModelCard, read_yaml(path), str(path))
    variant = None if path.parent != data_dir() / _FOLDERS["model"] else _variant(name)
    return card if variant is None else _as_variant(card, variant, name)


def _as_variant(card: ModelCard, variant: Variant, name: str) -> ModelCard:
    """The card of a checkpoint of that name: the base's shape, the format that its name says."""
    note = f"{name}: taken as {card.name}, which has the same shape by its name"
    if variant.weight_format is None:
        return card.model_copy(update={"note": note})
    config = quantised(card.config, variant, is_moe=card.model_spec().is_moe)
    stored = f"{note}; weights as {variant.weight_format}, which follows from the name (assumption)"
    return card.model_copy(update={"name": name, "hf_id": None, "config": config, "note": stored})


@lru_cache(maxsize=512)
def load_model(name: str) -> ModelSpec:
    """A model by catalog name, Hugging Face id, card file, or a Hugging Face ``config.json``.

    Raises:
        CatalogError: not in the catalog.
        InputError: a file that cannot be read or whose architecture is not understood.
    """
    path = path_of("model", name)
    try:
        if path.suffix == ".json":
            stem = path.parent.name if path.stem == "config" else path.stem
            return hf.import_config(_with_quantisation(path), name=stem)
        card = load_card(name)
        model = card.model_spec()
        is_variant = path.parent == data_dir() / _FOLDERS["model"] and _variant(name) is not None
        return model.model_copy(update={"note": card.note}) if is_variant else model
    except InputError as error:
        raise _placed(error, path) from None


def _with_quantisation(path: Path) -> dict[str, Any]:
    """A user's config; where it says nothing of quantisation, what ModelOpt wrote into the file beside a ``config.json``."""
    config: dict[str, Any] = read_json(path)
    beside = path.with_name(_BESIDE)
    if path.name != "config.json" or not _is_file(beside) or any(config.get(key) for key in _QUANTISATIONS):
        return config
    found = read_json(beside).get("quantization")
    if not isinstance(found, Mapping):
        raise InputError("must be an object", file=str(beside), field="quantization", value=found,
                         hint="the form of ModelOpt's exports: {quantization: {quant_algo: NVFP4, ...}}")  # fmt: skip
    return {**config, "quantization": found}


def _placed(error: InputError, path: Path) -> InputError:
    """The error with the file, and the line of the key it names (in a card, one of its config)."""
    if error.line is not None or error.field is None or error.file is not None:
        return error.at(str(path))
    keys = error.field.split(".")
    if keys[0] in _QUANTISATIONS and path.name == "config.json" and not any(map(read_json(path).get, _QUANTISATIONS)):
        path, keys = path.with_name(_BESIDE), ["quantization", *keys[1:]]
        error.field = ".".join(keys)
    if path.suffix == ".json":
        return error.at(str(path), line_of_field(read_text(path), keys))
    data = read_yaml(path)
    return error.at(str(path), line_of(data, keys if keys[0] in data else ["config", *keys]))


@lru_cache(maxsize=512)
def load_hardware(name: str, n_devices: int | None = None) -> Hardware:
    """A cluster, or a bare device taken as one scale-up domain (and more of them over its NICs), ready for use.

    Args:
        name: cluster or device, by catalog name, alias or file.
        n_devices: devices in use; the whole cluster (or one device) by default.

    Raises:
        CatalogError: neither a cluster nor a device of that name.
        InputError: more devices than the cluster has.
    """
    if _is_cluster(name):
        try:
            return _from_cluster(load_cluster(name), n_devices)
        except CatalogError as error:
            raise _placed(error, path_of("cluster", name)) from None
    try:
        device = load_device(name)
    except CatalogError:
        known = [*names("device"), *names("cluster"), *_other_names("device"), *_other_names("cluster")]
        close = nearest(name, known)
        hint = f"did you mean {' or '.join(repr(c) for c in close)}?" if close else "see: moesim list"
        raise CatalogError("no device or cluster of this name", field="hardware", value=name, hint=hint) from None
    try:
        return _from_device(device, n_devices or 1)
    except CatalogError as error:
        raise _placed(error, path_of("device", name)) from None


def _is_cluster(name: str) -> bool:
    try:
        path = path_of("cluster", name)
    except CatalogError:
        return False
    if path.parent == data_dir() / _FOLDERS["cluster"]:
        return True
    return _is_file(path) and "n_devices_per_node" in read_yaml(path)


def _part(load: Callable[[str], Part], name: str, field: str) -> Part:
    """Something that a cluster or device names in `field`."""
    try:
        return load(name)
    except CatalogError as error:
        error.field = field
        raise


def _from_cluster(spec: ClusterSpec, n_devices: int | None) -> Hardware:
    device = _part(load_device, spec.device, "device")
    n_max = spec.n_devices_per_node * spec.n_nodes
    n_used = n_max if n_devices is None else n_devices
    if not 1 <= n_used <= n_max:
        raise InputError("not that many devices in the cluster", field="n_devices", value=n_used, allowed=f"1..{n_max}",
                         hint=f"cluster {spec.name!r} has {spec.n_nodes} nodes of {spec.n_devices_per_node}")  # fmt: skip
    scale_out = _part(load_link, spec.scale_out_link, "scale_out_link") if spec.scale_out_link else None
    n_nics = spec.n_nics_per_node if spec.n_nics_per_node is not None else spec.n_devices_per_node
    nic = scale_out.bytes_per_s * n_nics / spec.n_devices_per_node if scale_out else None
    host = spec.host_memory_bytes_per_node
    return Hardware(
        name=spec.name,
        device=device,
        n_devices=n_used,
        scale_up=_part(load_link, spec.scale_up_link, "scale_up_link"),
        scale_up_domain_size=spec.scale_up_domain_size,
        scale_out=scale_out,
        nic_bytes_per_s=nic,
        host_memory_bytes_per_device=host / spec.n_devices_per_node if host is not None else device.host_memory_bytes,
        price_usd_per_device_h=spec.price_usd_per_device_h or device.price_usd_per_h,
        fabric=find_fabric(data_dir(), device.name, spec.scale_up_link),
        n_rails=spec.n_rails,
        spine_oversubscription=spec.spine_oversubscription or 1.0,
    )


def _from_device(device: DeviceSpec, n_devices: int) -> Hardware:
    scale_out = load_link("infiniband_ndr") if device.nic_bytes_per_s else None
    if n_devices > device.scale_up_domain_size and scale_out is None:
        raise InputError(f"{device.name} joins at most {device.scale_up_domain_size} devices", field="n_devices",
                         value=n_devices, hint="name a cluster with a scale-out link")  # fmt: skip
    return Hardware(
        name=device.name,
        device=device,
        n_devices=n_devices,
        scale_up=_part(load_link, device.scale_up_link, "scale_up_link") if device.scale_up_link else None,
        scale_up_domain_size=device.scale_up_domain_size,
        scale_out=scale_out,
        nic_bytes_per_s=device.nic_bytes_per_s,
        host_memory_bytes_per_device=device.host_memory_bytes,
        price_usd_per_device_h=device.price_usd_per_h,
        fabric=find_fabric(data_dir(), device.name, device.scale_up_link),
    )
