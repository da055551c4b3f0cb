"""What a sweep can vary, by path: fields of the scenario, of a system's model, links and price."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError

from moesim.errors import InputError, nearest
from moesim.specs.flow import FlowSpec
from moesim.specs.load import plain_words
from moesim.specs.model import GqaAttention, LayerSpec, MlaAttention, ModelSpec, MoeFfn
from moesim.specs.parallel import ParallelSpec
from moesim.specs.routing import RoutingSpec
from moesim.specs.scenario import ScenarioSpec, SystemSpec
from moesim.specs.workload import WorkloadSpec

__all__ = [
    "MODEL_NUMBERS",
    "WORKLOAD_NUMBERS",
    "Path",
    "Variant",
    "fresh_model",
    "known_paths",
    "patched_model",
    "read_path",
    "system_of",
    "variant_of",
    "workload_numbers",
]

#: Fields of an MoE block that may differ from case to case inside one array of cases.
MODEL_NUMBERS = ("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "split")
WORKLOAD_NUMBERS = ("concurrency", "input_tokens", "output_tokens", "cached_prefix_tokens", "max_pass_tokens")
MODEL_SHAPES = ("n_layers", "hidden_size", "vocab_size", "n_shared_experts", "shared_intermediate_size")
NETWORK = ("scale", "up_scale", "nic_scale")
SYSTEM_FIELDS = ("weight_dtype", "kv_dtype", "overlap", "n_members", "member_skew", "dp_prefill")
SCENARIO_FIELDS = ("hardware", "n_devices", "calibration")
OTHERS = ("price_usd_per_device_h", "training.compute_flop")


@dataclass(frozen=True, slots=True)
class Path:
    """A path as a sweep uses it: `root` is workload, model, system, scenario, network, price or training.

    `system` is the system it belongs to (None: all), `name` the dotted rest. `is_number` marks what is an array inside a group of
    cases; everything else makes a group.
    """

    text: str
    root: str
    name: str
    system: int | None = None
    is_number: bool = False


@dataclass(frozen=True, slots=True)
class Variant:
    """What all cases of a group share: the scenario, changes of the models' shapes by system, links and price."""

    scenario: ScenarioSpec
    shapes: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    up_scale: float = 1.0
    nic_scale: float = 1.0
    price_usd_per_device_h: float | None = None


def read_path(text: str, scenario: ScenarioSpec, default: int) -> Path:
    """Understand a path.

    Args:
        text: as written in the sweep.
        scenario: the base.
        default: the system that paths without ``systems.N`` mean.

    Raises:
        InputError: nothing of this name; the nearest known path is suggested.
    """
    system, rest = default, text
    if text.startswith("systems."):
        system, rest = _system(text, scenario)
    path = _of_system(text, rest, system)
    if path is None and rest == text:
        path = _of_scenario(text)
    if path is not None:
        return path
    close = nearest(text, known_paths(scenario, default))
    hint = f"did you mean {' or '.join(repr(c) for c in close)}?" if close else "see docs/sweeps.md for what can vary"
    raise InputError("no such path", field="axes", value=text, hint=hint)


def known_paths(scenario: ScenarioSpec, default: int) -> list[str]:
    """Everything that can vary, in the short form and for every system."""
    own = ["model", *(f"model.{n}" for n in (*MODEL_NUMBERS, *MODEL_SHAPES)), *SYSTEM_FIELDS]
    own += [f"parallel.{n}" for n in ParallelSpec.model_fields] + [f"routing.{n}" for n in _fields(RoutingSpec)]
    own += [f"flow.{n}" for n in FlowSpec.model_fields]
    others = [f"systems.{i}.{n}" for i in range(len(scenario.systems)) for n in own]
    rest = [*SCENARIO_FIELDS, *(f"workload.{n}" for n in WORKLOAD_NUMBERS), *(f"network.{n}" for n in NETWORK), *OTHERS]
    return [*own, *rest, *others]


def _fields(spec: type[BaseModel]) -> list[str]:
    names = list(spec.model_fields)
    return [*names, "placement.kind"] if spec is RoutingSpec else names


def _system(text: str, scenario: ScenarioSpec) -> tuple[int, str]:
    rest = text.removeprefix("systems.")
    for i, system in enumerate(scenario.systems):
        for head in (str(i), system.name):
            if rest.startswith(f"{head}."):
                return i, rest.removeprefix(f"{head}.")
    names = ", ".join(f"{i} ({s.name})" for i, s in enumerate(scenario.systems))
    raise InputError("names no system of the base", field="axes", value=text, allowed=names)


def _of_system(text: str, rest: str, system: int) -> Path | None:
    head, _, name = rest.partition(".")
    if head == "model" and name in MODEL_NUMBERS:
        return Path(text, "model", name, system, is_number=True)
    if head == "model" and name in MODEL_SHAPES:
        return Path(text, "shape", name, system)
    nested: dict[str, type[BaseModel]] = {"parallel": ParallelSpec, "routing": RoutingSpec, "flow": FlowSpec}
    known = head in nested and (name == "" or name in _fields(nested[head]))
    if rest == "model" or rest in SYSTEM_FIELDS or known:
        return Path(text, "system", rest, system)
    return None


def _of_scenario(text: str) -> Path | None:
    head, _, name = text.partition(".")
    if head == "workload" and name in WORKLOAD_NUMBERS:
        return Path(text, "workload", name, is_number=True)
    if head == "network" and name in NETWORK:
        return Path(text, "network", name)
    if text in SCENARIO_FIELDS:
        return Path(text, "scenario", text)
    if text == "price_usd_per_device_h":
        return Path(text, "price", text)
    if text == "training.compute_flop":
        return Path(text, "training", "compute_flop", is_number=True)
    return None


def variant_of(base: ScenarioSpec, settings: Mapping[Path, Any]) -> Variant:
    """The base with the settings that make a group.

    Raises:
        InputError: a value that its field does not take.
        ValueError: values that do not go together, in words.
    """
    data: dict[str, Any] = base.model_dump(mode="json")
    shapes: dict[int, dict[str, int]] = {}
    up = nic = 1.0
    price: float | None = None
    for path, value in settings.items():
        if path.root == "shape":
            shapes.setdefault(path.system or 0, {})[path.name] = _whole(path, value)
        elif path.root == "network":
            scale = _positive(path, value)
            up *= scale if path.name != "nic_scale" else 1.0
            nic *= scale if path.name != "up_scale" else 1.0
        elif path.root == "price":
            price = _positive(path, value)
        elif path.root == "system":
            _put(data["systems"][path.system or 0], path.name.split("."), value)
        else:
            data[path.name] = value
    return Variant(_checked(data, settings), shapes, up, nic, price)


def _put(node: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
    node[keys[-1]] = deepcopy(value) if isinstance(value, dict) else list(value) if isinstance(value, tuple) else value


def _checked(data: dict[str, Any], settings: Mapping[Path, Any]) -> ScenarioSpec:
    try:
        return ScenarioSpec.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        words = plain_words(first["msg"])
        if first["type"] == "value_error":
            raise ValueError(words) from None
        loc = ".".join(str(part) for part in first["loc"])
        text = next((p.text for p in settings if loc.endswith(p.name) or p.name in loc), loc)
        shown = first.get("input")
        raise InputError(words, field=text, value=shown if not isinstance(shown, dict) else None) from None


def _whole(path: Path, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0 or (value == 0 and "shared" not in path.name):
        raise InputError("must be a whole number above 0", field=path.text, value=value)
    return value


def _positive(path: Path, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
        raise InputError("must be a number above 0", field=path.text, value=value)
    return float(value)


def patched_model(model: ModelSpec, shape: Mapping[str, int]) -> ModelSpec:
    """The model with another depth, hidden size, vocabulary or shared experts.

    Fewer layers keep the first ones, more repeat the last. Shared experts of another number keep their own width.

    Raises:
        ValueError: the change has no meaning for this model.
    """
    update: dict[str, Any] = {}
    if "hidden_size" in shape:
        kinds = [layer.attention for layer, _ in model.layer_kinds]
        if not all(isinstance(a, GqaAttention | MlaAttention) for a in kinds):
            raise ValueError(f"hidden_size: {model.name} has layers whose weights are counted for its own hidden size")
        update["hidden_size"] = shape["hidden_size"]
    if "vocab_size" in shape:
        update["vocab_size"] = shape["vocab_size"]
    layers = model.layers
    if "n_layers" in shape:
        n = shape["n_layers"]
        layers = layers[:n] + (layers[-1],) * (n - len(layers))
    if "n_shared_experts" in shape or "shared_intermediate_size" in shape:
        done: dict[int, LayerSpec] = {}
        for layer in layers:
            if id(layer) not in done:
                done[id(layer)] = _with_shared(layer, shape)
        layers = tuple(done[id(layer)] for layer in layers)
    return fresh_model(model, **update, layers=layers) if shape else model


def fresh_model(model: ModelSpec, **update: Any) -> ModelSpec:
    """A copy with other fields and without what the old one has remembered of itself (which `model_copy` takes along)."""
    return ModelSpec.model_construct(**{**{name: getattr(model, name) for name in ModelSpec.model_fields}, **update})


def _with_shared(layer: LayerSpec, shape: Mapping[str, int]) -> LayerSpec:
    ffn = layer.ffn
    if not isinstance(ffn, MoeFfn):
        return layer
    n = shape.get("n_shared_experts", ffn.n_shared_experts)
    one = ffn.shared_intermediate_size // ffn.n_shared_experts if ffn.n_shared_experts else ffn.moe_intermediate_size
    width = shape.get("shared_intermediate_size", one * n)
    change = {"n_shared_experts": n, "shared_intermediate_size": width}
    return layer.model_copy(update={"ffn": ffn.model_copy(update=change)})


def workload_numbers(workload: WorkloadSpec) -> dict[str, float]:
    """The numbers of a workload, its middle concurrency among them."""
    found = {name: float(getattr(workload, name)) for name in WORKLOAD_NUMBERS if name != "concurrency"}
    return {"concurrency": float(workload.middle), **found}


def system_of(scenario: ScenarioSpec, name: str | None, field: str = "system") -> int:
    """Index of the system of this name, the reference's by default.

    Raises:
        InputError: no such system.
    """
    chosen = scenario.reference.name if name is None else name
    for i, system in enumerate(scenario.systems):
        if system.name == chosen:
            return i
    raise InputError(
        "is none of the base's systems", field=field, value=chosen, allowed=", ".join(_names(scenario.systems))
    )


def _names(systems: tuple[SystemSpec, ...]) -> list[str]:
    return [system.name for system in systems]
