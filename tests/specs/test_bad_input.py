"""Fuzzing: whatever a file holds, a loader answers with a value or with one line, soon."""

from __future__ import annotations

import copy
import json
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moesim.errors import InputError
from moesim.specs import catalog, hf
from moesim.specs.catalog import ModelCard, data_dir
from moesim.specs.hardware import ClusterSpec, DeviceSpec, LinkSpec
from moesim.specs.load import read_json, read_yaml, validate
from moesim.specs.scenario import ScenarioSpec
from moesim.specs.yaml_text import parse_yaml
from moesim.study.run import load_scenario

FUZZ = settings(
    max_examples=60, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
SPECS = {
    ScenarioSpec: sorted((data_dir() / "scenarios").glob("*.yaml"))[0],
    DeviceSpec: data_dir() / "hardware/devices/h200_sxm.yaml",
    LinkSpec: data_dir() / "hardware/links/nvlink4.yaml",
    ClusterSpec: data_dir() / "hardware/clusters/hgx_h200.yaml",
    ModelCard: data_dir() / "scenarios/models/mixtral-8x7b.yaml",
}
CARDS = ("mixtral-8x7b", "deepseek-v3", "llama-3.1-70b", "qwen3-next-80b-a3b", "gpt-oss-120b")

junk = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=12),
    st.sampled_from(["", "nan GB", "1e400 GB", "-1 GB", "4.8 TB", "5 us", "0", "mixtral-8x7b", "../..",
                     "\x1b[31m", "\u2028", "\ud800"]),
    st.lists(st.integers(-2, 5), max_size=3), st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)  # fmt: skip
yaml_bits = st.lists(
    st.sampled_from(
        ["a", "b", ": ", ":", "- ", "\n", "\n  ", "\n    ", "[", "]", "{", "}", ", ", "&x ", "*x", "!!str ", "!t ", "|", ">",
         "\t", "'", '"', "#", "---\n", "...\n", "<<: ", "? ", "%", "@", "1", "0x", ".nan", "1e999", "~",
         "true", "\\", "\x07", "é", "\u2029"]
    ),
    max_size=40,
).map("".join)  # fmt: skip


def answers(call: Callable[[], Any], seconds: float = 5.0) -> Any:
    """The value of `call`, or None where it refuses in one short printable line; anything else fails."""
    began = time.monotonic()
    try:
        value = call()
    except InputError as error:
        text = str(error)
        assert text
        assert len(text.splitlines()) == 1
        assert text.isprintable()
        assert len(text) < 1500
        text.encode("utf-8")
        value = None
    assert time.monotonic() - began < seconds
    return value


@FUZZ
@given(content=st.binary(max_size=200))
def test_random_bytes(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_bytes(content)
    answers(lambda: read_yaml(path))
    answers(lambda: read_json(path))
    answers(lambda: load_scenario(str(path)))


@FUZZ
@given(text=st.one_of(yaml_bits, st.text(max_size=60)))
def test_random_yaml(text: str) -> None:
    data = answers(lambda: parse_yaml(text, "f"))
    if isinstance(data, dict):
        for spec in SPECS:
            answers(lambda spec=spec: validate(spec, data, "f"))


@FUZZ
@given(
    text=st.lists(
        st.sampled_from([*list('{}[]:,"\\ \n1e.-'), '"a"', "null", "true", "NaN", "1e999", "9" * 30]), max_size=25
    ).map("".join)
)
def test_random_json(text: str, tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_text(text)
    answers(lambda: read_json(path))


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values inside nested data."""
    found = [path] if path else []
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        found += places(value, (*path, key))
    return found


def mutate(data: Any, draw: st.DataObject) -> Any:
    """The data with one to three values replaced, removed, or put under another key."""
    data = copy.deepcopy(data)
    for _ in range(draw.draw(st.integers(1, 3))):
        found = places(data)
        if not found:
            return data
        *above, last = draw.draw(st.sampled_from(found))
        node = data
        for part in above:
            node = node[part]
        match draw.draw(st.sampled_from(["replace", "replace", "remove", "rename"])):
            case "replace":
                node[last] = draw.draw(junk)
            case "remove":
                del node[last]
            case "rename" if isinstance(node, dict):
                node[draw.draw(st.text(max_size=8))] = node.pop(last)
            case _:
                node.insert(0, draw.draw(junk))
    return data


def plain(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items()}
    return [plain(value) for value in node] if isinstance(node, list) else node


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.__name__)
@FUZZ
@given(draw=st.data())
def test_mutated_specs(spec: Any, draw: st.DataObject) -> None:
    changed = mutate(plain(read_yaml(SPECS[spec])), draw)
    valid = answers(lambda: validate(spec, changed, "f"))
    if isinstance(valid, ModelCard):
        answers(valid.model_spec)


@pytest.mark.parametrize("card", CARDS)
@FUZZ
@given(draw=st.data())
def test_mutated_configs(card: str, draw: st.DataObject) -> None:
    changed = mutate(plain(read_yaml(catalog.path_of("model", card)))["config"], draw)
    model = answers(lambda: hf.import_config(changed, "f"))
    if model is not None:
        assert model.n_params >= model.n_active_params >= 0


@pytest.mark.parametrize("card", CARDS)
@FUZZ
@given(
    key=st.sampled_from(
        ["num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts", "expert_layer_period"]
    ),
    n=st.integers(2, 512),
)
def test_experts_are_never_read_as_dense(card: str, key: str, n: int) -> None:
    config = plain(read_yaml(catalog.path_of("model", card)))["config"]
    for model_type in ("no_such_type", "llama"):
        answers_with = {**config, key: n, "model_type": model_type}
        model = answers(lambda config=answers_with: hf.import_config(config, "f"))
        assert model is None or model.is_moe


@FUZZ
@given(seed=st.integers(0, 10**6), path=st.sampled_from(list(SPECS.values())))
def test_damaged_yaml_text(seed: int, path: Path) -> None:
    rng = random.Random(seed)
    text = path.read_text()
    for _ in range(rng.randint(1, 4)):
        at, n = rng.randrange(len(text)), rng.randint(0, 6)
        text = (
            text[:at]
            + rng.choice(["", "\t", "\n", "  ", ":", "- ", "[", "}", '"', "'", "&a ", "*a", "!", "#", "\x00", "-", "9"])
            + text[at + n :]
        )
    cut = text if rng.random() < 0.7 else text[: rng.randrange(len(text))]
    spec = next(spec for spec, where in SPECS.items() if where == path)
    data = answers(lambda: parse_yaml(cut, "f"))
    if isinstance(data, dict):
        answers(lambda: validate(spec, data, "f"))


@FUZZ
@given(seed=st.integers(0, 10**6), card=st.sampled_from(CARDS))
def test_damaged_json_text(seed: int, card: str, tmp_path: Path) -> None:
    rng = random.Random(seed)
    text = json.dumps(plain(read_yaml(catalog.path_of("model", card)))["config"], indent=2)
    at, n = rng.randrange(len(text)), rng.randint(0, 6)
    text = text[:at] + rng.choice(["", '"', ",", "}", "[", "9", "-", "\\", "NaN", "\x00"]) + text[at + n :]
    path = tmp_path / "config.json"
    path.write_text(text if rng.random() < 0.6 else text[: rng.randrange(len(text))])
    catalog.load_model.cache_clear()
    answers(lambda: catalog.load_model(str(path)))


@FUZZ
@given(
    name=st.one_of(
        st.text(max_size=20), st.sampled_from(["~nobody", "x" * 5000, "/" + "x" * 5000, "a\0b", "./\0", "."])
    )
)
def test_names(name: str) -> None:
    for load in (catalog.load_model, catalog.load_hardware, catalog.load_device, catalog.load_link, load_scenario):
        answers(lambda load=load: load(name))


@pytest.mark.parametrize("line", ["1", "9"])
def test_the_line_is_that_of_the_mistake(line: str) -> None:
    """An unknown key put on any line of a scenario is found on that line."""
    path = SPECS[ScenarioSpec]
    lines = path.read_text().splitlines()
    tops = [i for i, text in enumerate(lines) if re.match(r"[a-z_]+:", text)]
    for at in tops:
        text = "\n".join([*lines[:at], f"zz{line}: 1", *lines[at:]])
        with pytest.raises(InputError) as caught:
            validate(ScenarioSpec, parse_yaml(text, "f"), "f")
        assert (caught.value.line, caught.value.field) == (at + 1, f"zz{line}")


def test_one_bad_field_in_a_list_is_one_problem(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(
        "title: t\nhardware: hgx_h100\nsystems:\n  - {name: m, kind: moe, model: qwen3-30b-a3b, overlap: 3}\n"
        "workload: {input_tokens: 512, output_tokens: 64, concurrency: [64]}\n"
    )
    with pytest.raises(InputError) as caught:
        load_scenario(str(file))
    assert caught.value.field == "systems.0.overlap"
    assert "more problem" not in str(caught.value)
