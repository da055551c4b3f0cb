# ruff: noqa: E501 (a table: one case is one line)
"""Bad input, case by case: what the user has, what is run, and what the one line must say."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

SCENARIO = """\
title: A test
hardware: hgx_h100
n_devices: 2
systems:
  - name: A
    kind: moe
    model: mixtral-8x7b
    parallel: {tp_size: 2}
    routing:
      family: zipf
      skew: 0.8
  - name: B
    kind: dense
    model: llama-2-13b
    parallel:
      tp_size: 2
workload:
  input_tokens: 128
  output_tokens: 16
  concurrency: [1, 4]
comparison:
  reference: A
engine: analytic
"""

DEVICE = """\
name: toy
vendor: Toy
year: 2024
form: SXM
memory_bytes: 141 GB
memory_kind: HBM3
memory_bytes_per_s: 4.8 TB/s
peak_flop_per_s:
  bf16: 989 TFLOP/s
sources:
  - origin: assumption
    text: made up for a test
    covers: [year, memory_bytes, memory_bytes_per_s, peak_flop_per_s, scale_up_domain_size]
"""

CLUSTER = """\
name: toys
device: h100_sxm
n_devices_per_node: 8
n_nodes: 2
scale_up_link: nvlink4
scale_up_domain_size: 8
scale_out_link: infiniband_ndr
sources:
  - origin: assumption
    text: made up for a test
    covers: [n_devices_per_node, n_nodes, scale_up_domain_size]
"""

CARD = """\
name: toy-moe
config:
  model_type: mixtral
  num_hidden_layers: 2
  hidden_size: 64
  intermediate_size: 128
  num_attention_heads: 4
  num_key_value_heads: 2
  vocab_size: 100
  num_local_experts: 4
  num_experts_per_tok: 2
sources:
  - origin: assumption
    text: made up for a test
    covers: [config]
"""

CONFIG: dict[str, Any] = {
    "model_type": "mixtral",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}

#: Nine levels of nine aliases: a billion values from a few hundred bytes.
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@dataclass(frozen=True)
class Case:
    """`argv` may name {dir}; `at` is text on the line that the message must point to; `says` must all stand in it."""

    id: str
    argv: tuple[str, ...]
    says: tuple[str, ...]
    file: str | None = None
    at: str | None = None
    files: dict[str, str | bytes] = field(default_factory=dict)
    line: int | None = None

    @property
    def wanted_line(self) -> int | None:
        """The line number the message must carry."""
        if self.line is not None or self.at is None or self.file is None:
            return self.line
        text = self.files[self.file]
        assert isinstance(text, str)
        assert text.count(self.at) == 1, f"{self.at!r} must stand once"
        return text.count("\n", 0, text.index(self.at)) + 1


def _changed(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, f"{old!r} must stand once"
    return text.replace(old, new)


def scenario(
    id: str,
    old: str,
    new: str,
    *says: str,
    at: str | None = None,
    also: tuple[str, str] = ("", ""),
    file: str = "s.yaml",
) -> Case:
    """A scenario with one thing changed (or two); the message points to `at` (the new text by default) or to another file."""
    text = _changed(SCENARIO, old, new)
    files: dict[str, str | bytes] = {"s.yaml": _changed(text, *also) if also[0] else text}
    if file != "s.yaml":
        return Case(id, ("run", "{dir}/s.yaml", "--out", "{dir}/out"), says, None, None, files)
    return Case(
        id, ("run", "{dir}/s.yaml", "--out", "{dir}/out"), says, "s.yaml", at or new.strip().splitlines()[0], files
    )


def device(id: str, old: str, new: str, *says: str, at: str | None = None) -> Case:
    """A device file with one thing changed."""
    files: dict[str, str | bytes] = {"d.yaml": _changed(DEVICE, old, new)}
    return Case(id, ("hardware", "{dir}/d.yaml"), says, "d.yaml", at or new.strip().splitlines()[0], files)


def cluster(id: str, old: str, new: str, *says: str, at: str | None = None) -> Case:
    """A cluster file with one thing changed."""
    files: dict[str, str | bytes] = {"c.yaml": _changed(CLUSTER, old, new)}
    return Case(id, ("hardware", "{dir}/c.yaml"), says, "c.yaml", at or new.strip().splitlines()[0], files)


def card(id: str, old: str, new: str, *says: str, at: str | None = None) -> Case:
    """A model card with one thing changed."""
    files: dict[str, str | bytes] = {"m.yaml": _changed(CARD, old, new)}
    return Case(id, ("model", "{dir}/m.yaml"), says, "m.yaml", at or new.strip().splitlines()[0], files)


def config(id: str, change: dict[str, Any], *says: str, at: str | None = None) -> Case:
    """A config.json with keys changed, or left out where None; the message points to the first changed key by default."""
    merged = {k: v for k, v in {**CONFIG, **change}.items() if v is not None}
    text = json.dumps(merged, indent=2)
    key = next(iter(change))
    found = at if at is not None else (f'"{key}":' if key in merged else None)
    return Case(id, ("model", "{dir}/config.json"), says, "config.json", found, {"config.json": text})


def raw(id: str, name: str, text: str | bytes, *says: str, at: str | None = None, line: int | None = None) -> Case:
    """A file as it is, read by the command that fits its name."""
    argv = {
        "s.yaml": ("run", "{dir}/s.yaml", "--out", "{dir}/out"),
        "d.yaml": ("hardware", "{dir}/d.yaml"),
        "config.json": ("model", "{dir}/config.json"),
    }[name]
    return Case(id, argv, says, name, at, {name: text}, line)


def command(id: str, line: str, *says: str) -> Case:
    """A command line without files of its own."""
    return Case(id, tuple(line.split()), says)


ESTIMATE = "estimate --hardware hgx_h100 --model mixtral-8x7b --tp 2"

KEYS_AND_VALUES = [
    scenario("unknown key", "n_devices: 2", "n_device: 2", "n_device", "unknown key", "did you mean 'n_devices'?"),
    scenario("unknown key, nothing near", "n_devices: 2", "zzzz: 2", "zzzz", "unknown key", "known here", "n_devices"),
    scenario("unknown nested key", "      tp_size: 2", "      tp: 2", "systems.1.parallel.tp", "unknown key", "tp_size"),
    scenario("unknown key in a workload", "  output_tokens: 16", "  output_token: 16", "output_token", "output_tokens"),
    scenario("missing key", "hardware: hgx_h100\n", "", "hardware", "is missing", at="title: A test"),
    scenario("missing nested key", "    kind: dense\n", "", "systems.1.kind", "is missing", at="  - name: B"),
    scenario("key without value", "hardware: hgx_h100", "hardware:", "hardware", "has no value"),
    scenario("no systems", SCENARIO[SCENARIO.index("systems:") : SCENARIO.index("workload:")], "systems: []\n", "systems", "at least 1"),
    scenario("systems is a mapping", SCENARIO[SCENARIO.index("systems:") : SCENARIO.index("workload:")], "systems: {a: 1}\n", "systems"),
    scenario("workload is a list", SCENARIO[SCENARIO.index("workload:") : SCENARIO.index("comparison:")], "workload: [1]\n", "workload"),
    scenario("negative", "input_tokens: 128", "input_tokens: -5", "workload.input_tokens", "-5", "1 or more"),
    scenario("zero", "n_devices: 2", "n_devices: 0", "n_devices", "got 0", "1 or more"),
    scenario("zero in a list", "[1, 4]", "[1, 0]", "workload.concurrency.1", "got 0", "1 or more"),
    scenario("empty list", "[1, 4]", "[]", "workload.concurrency", "at least 1", at="concurrency: []"),
    scenario("bool for int", "output_tokens: 16", "output_tokens: true", "workload.output_tokens", "True", "whole number"),
    scenario("text for int", "output_tokens: 16", "output_tokens: '16'", "workload.output_tokens", "'16'", "whole number"),
    scenario("float for int", "output_tokens: 16", "output_tokens: 16.0", "workload.output_tokens", "16.0", "whole number"),
    scenario("huge int", "output_tokens: 16", "output_tokens: 9000000000000000", "workload.output_tokens", "at most"),
    scenario("int of many digits", "output_tokens: 16", f"output_tokens: {'9' * 5000}", "workload.output_tokens", at="output_tokens: "),
    scenario("hex int of many digits", "output_tokens: 16", f"output_tokens: 0x{'f' * 5000}", "workload.output_tokens", "too large", at="output_tokens: "),
    scenario("bool for a skew", "skew: 0.8", "skew: true", "routing.skew", "True", "must be a number"),
    scenario("text for a skew", "skew: 0.8", "skew: high", "routing.skew", "'high'", "must be a number"),
    scenario("NaN", "skew: 0.8", "skew: .nan", "systems.0.routing.skew", ".nan", "finite"),
    scenario("infinite", "skew: 0.8", "skew: .inf", "systems.0.routing.skew", ".inf", "finite"),
    scenario("overflowing number", "skew: 0.8", "skew: 1.0e999", "systems.0.routing.skew", "1.0e999", "finite"),
    scenario("negative skew", "skew: 0.8", "skew: -0.8", "systems.0.routing.skew", "-0.8", "more than 0"),
    scenario("text for bool", "engine: analytic", "is_assumption: maybe", "is_assumption", "'maybe'", "true or false"),
    scenario("number for text", "title: A test", "title: 5", "title", "got 5", "must be text"),
    scenario("unknown engine", "engine: analytic", "engine: analytical", "engine", "'analytical'", "'analytic' or 'flow'", "did you mean 'analytic'?"),
    scenario("unknown kind", "kind: moe", "kind: mixture", "systems.0.kind", "'mixture'", "'dense', 'ensemble' or 'moe'"),
    scenario("negative seed", "engine: analytic", "seed: -1", "seed", "-1", "0 or more"),
    scenario("empty title", "title: A test", "title: ''", "title", "at least 1 character"),
]  # fmt: skip

FILES = [
    raw("not a mapping", "s.yaml", "- a\n- b\n", "is a list", "mapping", line=1),
    raw("a single word", "s.yaml", "hello\n", "single value", "mapping", line=1),
    raw("empty file", "s.yaml", "", "is empty", line=1),
    raw("only a comment", "s.yaml", "# nothing\n", "is empty", line=1),
    raw("not UTF-8", "s.yaml", b"title: \xff\xfe\xfa\n", "is not UTF-8", "byte 7"),
    raw("binary", "s.yaml", b"\x00\x01\x02\x03", "is not valid YAML"),
    raw("tab for indentation", "s.yaml", SCENARIO.replace("  input_tokens", "\tinput_tokens"), "is not valid YAML", at="\tinput_tokens"),
    raw("truncated YAML", "s.yaml", SCENARIO[: SCENARIO.index(", 4]")], "is not valid YAML", line=20),
    raw("cut between keys", "s.yaml", SCENARIO[: SCENARIO.index("workload:")], "workload", "is missing", line=1),
    raw("unclosed quote", "s.yaml", "title: 'A test\nhardware: x\n", "is not valid YAML", line=3),
    raw("duplicate key", "s.yaml", SCENARIO + "hardware: hgx_h200\n", "hardware", "stands twice", "first in line 2", at="hardware: hgx_h200"),
    raw("duplicate nested key", "s.yaml", SCENARIO.replace("skew: 0.8", "skew: 0.8\n      skew: 0.9"), "systems.0.routing.skew", "stands twice", at="skew: 0.9"),
    raw("python tag", "s.yaml", "title: !!python/object/apply:os.system ['touch {dir}/out']\n", "title", "tag", line=1),
    raw("unknown tag", "s.yaml", "title: !secret x\n", "title", "!secret", "tag", line=1),
    raw("billion laughs", "s.yaml", LAUGHS, "expands to more than", "aliases"),
    raw("alias of itself", "s.yaml", "title: &a [*a]\n", "title", "nested too deeply"),
    raw("undefined alias", "s.yaml", "title: *nothing\n", "is not valid YAML", "nothing", line=1),
    raw("merge key", "s.yaml", "a: &a {x: 1}\nb:\n  <<: *a\n", "b.<<", "merge keys", line=3),
    raw("deep nesting", "s.yaml", "a: " + "[" * 5000 + "]" * 5000, "too deeply"),
    raw("two documents", "s.yaml", SCENARIO + "---\n" + SCENARIO, "is not valid YAML", "single document"),
    raw("a list as key", "s.yaml", "? [a, b]\n: 1\n", "key that is not text", line=1),
    raw("huge file", "s.yaml", "# " + "x" * (3 << 20), "too large", "1 MiB"),
    Case("missing file", ("run", "{dir}/none.yaml", "--out", "{dir}/out"), ("no such file", "check the path"), "none.yaml"),
    Case("directory for a scenario", ("run", "{dir}/sub.yaml"), ("is a directory",), "sub.yaml", files={"sub.yaml/x": ""}),
    Case("directory for a model", ("model", "{dir}/sub"), ("is a directory", "name a file inside it"), "sub", files={"sub/x": ""}),
    Case("missing config", ("model", "{dir}/config.json"), ("no such file",), "config.json"),
    raw("truncated JSON", "config.json", json.dumps(CONFIG, indent=1)[:-20], "is not valid JSON", "cut off", line=10),
    raw("JSON cut in a text", "config.json", '{"model_type": "mixt', "is not valid JSON", "cut off", line=1),
    raw("empty JSON", "config.json", " \n", "is empty", line=1),
    raw("JSON list", "config.json", "[1, 2]", "is a list", "object", line=1),
    raw("JSON with a comma too many", "config.json", '{\n "a": 1,\n}', "is not valid JSON"),
    raw("duplicate JSON key", "config.json", '{\n "hidden_size": 1,\n "vocab_size": 2,\n "hidden_size": 3\n}', "hidden_size", "stands twice", line=4),
    raw("duplicate nested JSON key", "config.json", '{"x": 1,\n"text_config": {\n"x": 1,\n"y": 2,\n"x": 3}\n,"y": 1}', "text_config.x", "stands twice", line=5),
    raw("JSON NaN", "config.json", '{\n"model_type": "mixtral",\n"hidden_size": NaN}', "hidden_size", "NaN", "finite", line=3),
    raw("JSON overflow", "config.json", '{\n"rope_theta": 1e999}', "rope_theta", "1e999", "finite", line=2),
    raw("JSON int of many digits", "config.json", '{\n"hidden_size": ' + "9" * 5000 + "}", "hidden_size", "too large", line=2),
    raw("deep JSON", "config.json", '{"a": ' + "[" * 100_000, "nested too deeply"),
    raw("JSON not UTF-8", "config.json", b'{"a": "\xff"}', "is not UTF-8"),
]  # fmt: skip

NAMES = [
    command("unknown hardware", "hardware h300_sxm", "hardware", "'h300_sxm'", "h100_sxm"),
    command("unknown hardware, nothing near", "hardware zzzzzz", "hardware", "'zzzzzz'", "moesim list"),
    command("unknown model", "model mixtral-8x7", "model", "'mixtral-8x7'", "mixtral-8x7b"),
    command("unknown hub id", "model mistralai/Mixtral-8x7B-v9", "model", "mistralai/mixtral-8x7b"),
    command("unknown scenario", "run mixtral-vs-llama", "scenario", "'mixtral-vs-llama'", "mixtral-vs-llama-2"),
    command("empty model name", "model ''", "model"),
    command("unknown list", "list device", "'device'", "devices", "did you mean 'devices'?"),
    scenario("unknown cluster in a scenario", "hardware: hgx_h100", "hardware: hgx_h10", "hardware", "'hgx_h10'", "hgx_h100"),
    scenario("unknown model in a scenario", "model: llama-2-13b", "model: llama-2-13", "systems.1.model", "'llama-2-13'", "llama-2-13b"),
    scenario("unknown calibration", "engine: analytic", "calibration: none-such", "calibration", "'none-such'"),
    scenario("unknown preset", "      family: zipf\n      skew: 0.8", "      family: preset\n      preset: mixtral-8x8b", "systems.0.routing.preset", "'mixtral-8x8b'", "mixtral-8x7b", at="preset: mixtral-8x8b"),
    scenario("missing trace", "      family: zipf\n      skew: 0.8", "      family: trace\n      trace: none.parquet", "none.parquet: systems.0", "no such trace", file="none.parquet"),
    cluster("unknown device in a cluster", "device: h100_sxm", "device: h100_sxn", "device", "'h100_sxn'", "h100_sxm"),
    cluster("unknown link in a cluster", "scale_up_link: nvlink4", "scale_up_link: nvlink44", "scale_up_link", "'nvlink44'", "nvlink4"),
    cluster("unknown link between nodes", "scale_out_link: infiniband_ndr", "scale_out_link: infiniband_nd", "scale_out_link", "infiniband_ndr"),
    device("unknown link of a device", "memory_kind: HBM3", "memory_kind: HBM3\nscale_up_link: nvlink44", "scale_up_link", "'nvlink44'", at="scale_up_link: nvlink44"),
]  # fmt: skip

QUANTITIES = [
    device("memory as bandwidth", "memory_bytes_per_s: 4.8 TB/s", "memory_bytes_per_s: 4.8 TB", "memory_bytes_per_s", "'4.8 TB'", "a bandwidth such as '4.8 TB/s'"),
    device("bandwidth as memory", "memory_bytes: 141 GB", "memory_bytes: 141 GB/s", "memory_bytes", "'141 GB/s'", "an amount of memory such as '141 GB'"),
    device("no unit", "memory_bytes: 141 GB", "memory_bytes: '141e9'", "memory_bytes", "'141e9'", "has no unit"),
    device("bare number", "memory_bytes: 141 GB", "memory_bytes: 141", "memory_bytes", "got 141", "needs a number with a unit"),
    device("negative quantity", "memory_bytes: 141 GB", "memory_bytes: -141 GB", "memory_bytes", "'-141 GB'", "not negative"),
    device("zero memory", "memory_bytes: 141 GB", "memory_bytes: 0 GB", "memory_bytes", "'0 GB'", "more than 0"),
    device("NaN quantity", "memory_bytes: 141 GB", "memory_bytes: nan GB", "memory_bytes", "'nan GB'", "finite"),
    device("infinite quantity", "memory_bytes: 141 GB", "memory_bytes: inf GB", "memory_bytes", "'inf GB'", "finite"),
    device("a unit without a number", "memory_bytes: 141 GB", "memory_bytes: GB", "memory_bytes", "'GB'", "number with a unit"),
    device("list for a quantity", "memory_bytes: 141 GB", "memory_bytes: [1, 2]", "memory_bytes", "number with a unit"),
    device("unit in capitals only", "memory_bytes: 141 GB", "memory_bytes: 141 gb", "memory_bytes", "'141 gb'", "141 GB"),
    device("wrong unit of a rate", "bf16: 989 TFLOP/s", "bf16: 989 TB/s", "peak_flop_per_s.bf16", "'989 TB/s'", "989 TFLOP/s"),
    device("unknown arithmetic", "bf16: 989 TFLOP/s", "bf17: 989 TFLOP/s", "peak_flop_per_s.bf17", "unknown key", "did you mean 'bf16'?"),
    device("no rate", "  bf16: 989 TFLOP/s", "  fp8: 989 TFLOP/s", "peak_flop_per_s", "at least one of bf16 and fp32", at="peak_flop_per_s:"),
    device("text for a year", "year: 2024", "year: '2024'", "year", "'2024'", "whole number"),
    device("a year of another age", "year: 2024", "year: 1024", "year", "1024", "2000"),
    device("number without a source", "year, memory_bytes, ", "memory_bytes, ", "year", "has no source", at="year: 2024"),
    device("source that covers nothing", "peak_flop_per_s, scale", "boost_clock_hz, peak_flop_per_s, scale", "sources", "'boost_clock_hz' covers no number", at="sources:"),
    device("two sources", "    text: made up for a test\n    covers: [", "    text: made up for a test\n    covers: [year]\n  - origin: paper\n    text: a second source\n    covers: [", "year", "more than one source", at="year: 2024"),
    device("no sources", DEVICE[DEVICE.index("sources:") :], "", "sources", "is missing", at="name: toy"),
    device("unknown origin", "origin: assumption", "origin: asumption", "sources.0.origin", "'asumption'", "did you mean 'assumption'?"),
    cluster("domains do not fill the nodes", "scale_up_domain_size: 8", "scale_up_domain_size: 5", "scale_up_domain_size", "5 does not divide the 16 devices"),
    cluster("no link between domains", "scale_out_link: infiniband_ndr\n", "", "scale_out_link", "more than one scale-up domain", at="name: toys"),
]  # fmt: skip

SPLITS = [
    scenario("split of heads", "n_devices: 2", "n_devices: 6", "systems.1.parallel.tp_size", "tp_size 3", "40 attention heads", "[1, 2, 4, 5, 8, 10]", at="tp_size: 3", also=("      tp_size: 2", "      tp_size: 3")),
    scenario("more ranks than devices", "      tp_size: 2", "      tp_size: 4", "systems.1.parallel", "4 devices", "2 of the hardware", at="    parallel:\n"),
    scenario("more devices than the cluster", "n_devices: 2", "n_devices: 16", "n_devices", "16", "1..8"),
    scenario("experts do not divide", "parallel: {tp_size: 2}", "parallel: {tp_size: 2, ep_size: 3}", "systems.0.parallel.ep_size", "ep_size 3", "2 ranks", "[1, 2]"),
    scenario("redundant experts without EPLB", "parallel: {tp_size: 2}", "parallel: {tp_size: 2, ep_size: 2, redundant_experts: 2}", "systems.0.routing.placement.kind", "redundant", "'contiguous'", "eplb", at="    routing:"),
    scenario("moe of a dense model", "model: mixtral-8x7b", "model: llama-2-7b", "systems.0.model", "'llama-2-7b'", "kind: dense"),
    scenario("dense of a moe", "model: llama-2-13b", "model: mixtral-8x7b", "systems.1.model", "'mixtral-8x7b'", "kind: moe", at="    model: mixtral-8x7b\n    parallel:\n"),
    scenario("ensemble of one", "kind: dense", "kind: ensemble", "systems.1.n_members", "at least 2 members", at="  - name: B"),
    scenario("dense of several members", "kind: dense", "kind: dense\n    n_members: 4", "systems.1.n_members", "at least 2 members", at="n_members: 4"),
    scenario("routing on a dense system", "    kind: dense\n", "    kind: dense\n    routing: {family: uniform}\n", "systems.1.routing", "only a system of kind 'moe'", at="routing: {family: uniform}"),
    scenario("unknown weight dtype", "kind: dense", "kind: dense\n    weight_dtype: bf61", "systems.1.weight_dtype", "'bf61'", "did you mean 'bf16'?", at="weight_dtype: bf61"),
    command("command line: split of heads", "estimate --hardware hgx_h100 --model llama-2-13b --tp 3", "tp_size", "3", "40 attention heads", "llama-2-13b"),
    command("command line: too few devices", "estimate --hardware hgx_h100 --model llama-2-13b --tp 16", "16", "1..8", "hgx_h100"),
    command("command line: experts over nothing", "estimate --hardware hgx_h100 --model mixtral-8x7b --tp 2 --ep 4", "ep_size 4", "2 ranks", "[1, 2]"),
    command("command line: uneven experts", "estimate --hardware hgx_h100 --model mixtral-8x7b --dp 6 --ep 6", "ep_size", "6", "8 expert slots"),
    command("command line: more stages than layers", "estimate --hardware dgx_h100 --model qwen3-0.6b --pp 30", "30"),
    command("command line: stages and layers", "estimate --hardware h100_x12_nodes --model qwen3-0.6b --pp 30", "pp_size", "30", "28 layers", "1..28"),
    command("command line: widths", "estimate --hardware h100_x12_nodes --model qwen3-0.6b --tp 16 --dp 2 --cp 7", "devices"),
]  # fmt: skip

ROUTING_AND_WORKLOAD = [
    scenario("family without skew", "      skew: 0.8\n", "", "systems.0.routing.skew", "needed by family 'zipf'", at="routing:"),
    scenario("family with a foreign field", "family: zipf", "family: uniform", "systems.0.routing.skew", "does not belong to family 'uniform'", at="skew: 0.8"),
    scenario("unknown family", "family: zipf", "family: zip", "systems.0.routing.family", "'zip'", "did you mean 'zipf'?"),
    scenario("popularity of another length", "      family: zipf\n      skew: 0.8", "      family: popularity\n      popularity: [1, 2, 3]", "systems.0.routing.popularity", "3 weights", "8 weights", at="popularity: ["),
    scenario("negative popularity", "      family: zipf\n      skew: 0.8", "      family: popularity\n      popularity: [1, 2, 3, 4, 5, 6, 7, -8]", "systems.0.routing.popularity", "negative", at="popularity: ["),
    scenario("popularity of zeros", "      family: zipf\n      skew: 0.8", "      family: popularity\n      popularity: [0, 0, 0, 0, 0, 0, 0, 0]", "systems.0.routing.popularity", "all be zero", at="popularity: ["),
    scenario("popularity of fewer than top-k", "      family: zipf\n      skew: 0.8", "      family: popularity\n      popularity: [1, 0, 0, 0, 0, 0, 0, 0]", "systems.0.routing.popularity", "top-k", at="popularity: ["),
    scenario("empty popularity", "      family: zipf\n      skew: 0.8", "      family: popularity\n      popularity: []", "systems.0.routing.popularity", at="popularity: ["),
    scenario("placement without a list", "      skew: 0.8", "      skew: 0.8\n      placement: {kind: given}", "systems.0.routing.placement.given", "given", at="placement: {"),
    scenario("placement with a missing expert", "      skew: 0.8", "      skew: 0.8\n      placement: {kind: given, given: [[0, 1, 2, 3], [4, 5, 6, 6]]}", "placement", "expert 7 has no slot", at="placement: {"),
    scenario("placement of another rank count", "      skew: 0.8", "      skew: 0.8\n      placement: {kind: given, given: [[0, 1, 2, 3], [4, 5, 6, 7]]}", "placement.given", "another number of ranks", at="placement: {"),
    scenario("placement with an unknown expert", "      skew: 0.8", "      skew: 0.8\n      placement: {kind: given, given: [[0, 1, 2, 3], [4, 5, 6, 8]]}", "placement", "got 8", "0..7", at="placement: {"),
    scenario("coupling above one", "      skew: 0.8", "      skew: 0.8\n      layer_coupling: 1.5", "layer_coupling", "1.5", "at most 1", at="layer_coupling"),
    scenario("zero capacity", "      skew: 0.8", "      skew: 0.8\n      capacity_factor: 0", "capacity_factor", "more than 0", at="capacity_factor"),
    scenario("prefix as long as the input", "  input_tokens: 128", "  input_tokens: 128\n  cached_prefix_tokens: 128", "workload.cached_prefix_tokens", "less than input_tokens", at="cached_prefix_tokens"),
    scenario("duplicate concurrency", "[1, 4]", "[4, 1, 4]", "workload.concurrency", "twice", at="concurrency: ["),
    scenario("two systems of one name", "name: B", "name: A", "systems", "same name", at="systems:"),
    scenario("reference to no system", "reference: A", "reference: C", "comparison.reference", "'C'", "A, B"),
    scenario("context longer than the model", "input_tokens: 128", "input_tokens: 40000", "systems.0.model", "'mixtral-8x7b'", "32768", "40016", at="model: mixtral-8x7b"),
    scenario("unknown basis", "reference: A", "bases: [named, equal_activ]", "comparison.bases.1", "did you mean 'equal_active'?"),
    scenario("twin of a dense reference", "  reference: A", "  reference: B\n  bases: [equal_active]", "comparison.reference", "experts", "'llama-2-13b'"),
]  # fmt: skip

MODELS = [
    config("missing hidden_size", {"hidden_size": None}, "hidden_size", "is missing"),
    config("no heads", {"num_attention_heads": 0}, "num_attention_heads", "got 0", "1 or more"),
    config("negative heads", {"num_attention_heads": -4}, "num_attention_heads", "-4", "1 or more"),
    config("heads as text", {"num_attention_heads": "4"}, "num_attention_heads", "'4'", "whole number"),
    config("heads as float", {"num_attention_heads": 4.0}, "num_attention_heads", "4.0", "whole number"),
    config("heads as bool", {"num_attention_heads": True}, "num_attention_heads", "True", "whole number"),
    config("heads as list", {"num_attention_heads": [4]}, "num_attention_heads", "[4]", "whole number"),
    config("huge hidden_size", {"hidden_size": 10**18}, "hidden_size", "10"),
    config("too many layers", {"num_hidden_layers": 10**6}, "num_hidden_layers", "1000000", "1..4096"),
    config("heads that do not divide", {"num_attention_heads": 7, "num_key_value_heads": 7}, "num_attention_heads", "does not divide hidden_size", "got 7", "hidden_size is 64"),
    config("key-value heads that do not divide", {"num_key_value_heads": 3}, "num_key_value_heads", "must divide", "got 3"),
    config("more choices than experts", {"num_experts_per_tok": 5}, "num_experts_per_tok", "got 5", "1..4"),
    config("unknown architecture with experts", {"model_type": "mixtrel"}, "mixtrel", "MoE", "mixtral"),
    config("expert keys in a dense architecture", {"num_local_experts": 4, "model_type": "llama", "num_experts_per_tok": None}, "num_local_experts"),
    config("missing architecture", {"model_type": None}, "model_type", "is missing"),
    config("an architecture that is no text", {"model_type": ["mixtral"]}, "model_type"),
    config("unknown key that may shape the model", {"expert_gate_dim": 8}, "expert_gate_dim", "may shape the model", "remove it"),
    card("a card's heads", "num_attention_heads: 4", "num_attention_heads: -4", "num_attention_heads", "-4", "1 or more"),
    card("a card without config", CARD[CARD.index("config:") : CARD.index("sources:")], "", "config", "is missing", at="name: toy-moe"),
    card("a card's number without source", "sources:", "published: {n_params: 1.0e9}\nsources:", "published.n_params", "has no source", at="published: {"),
    card("a source that covers nothing", "covers: [config]", "covers: [config, published]", "sources", "'published' covers no number", at="sources:"),
    card("a card's unknown key", "name: toy-moe", "name: toy-moe\nhfid: x", "hfid", "did you mean 'hf_id'?", at="hfid: x"),
    card("a source of two words", "text: made up for a test", "text: short", "sources.0.text", "at least 8 characters"),
]  # fmt: skip

COMMANDS = [
    command("unknown command", "rum x", "rum", "run"),
    command("unknown option", f"{ESTIMATE} --batches 4", "--batches", "--batch"),
    command("missing option", "estimate --model mixtral-8x7b", "--hardware"),
    command("missing option value", "estimate --model mixtral-8x7b --hardware", "--hardware", "requires an argument"),
    command("missing argument", "model", "Missing argument", "name"),
    command("extra argument", "model mixtral-8x7b another", "another"),
    command("text for --tp", f"{ESTIMATE} --ep two", "--ep", "'two'", "integer"),
    command("float for --tp", f"{ESTIMATE} --ep 1.5", "--ep", "'1.5'", "integer"),
    command("zero batch", f"{ESTIMATE} --batch 0", "--batch", "0", "1"),
    command("negative context", f"{ESTIMATE} --context -1", "--context", "-1", "1"),
    command("huge batch", f"{ESTIMATE} --batch 99999999999999999999999", "--batch", "9999"),
    command("huge split", f"{ESTIMATE} --ep 99999999999999999999999", "ep", "9999"),
    command("bad engine", f"{ESTIMATE} --engine analytical", "--engine", "'analytical'", "analytic, flow", "did you mean 'analytic'?"),
    command("bad engine of a run", "run mixtral-vs-llama-2-2xh100 --engine flaw", "--engine", "'flaw'", "did you mean 'flow'?"),
    command("bad phase", f"{ESTIMATE} --phase decoding", "--phase", "'decoding'", "did you mean 'decode'?"),
    command("bad routing", f"{ESTIMATE} --routing ziph:0.8", "--routing", "'ziph'", "did you mean 'zipf'?"),
    command("routing without its number", f"{ESTIMATE} --routing zipf", "--routing", "'zipf'", "zipf:0.8"),
    command("routing with a word for a number", f"{ESTIMATE} --routing zipf:big", "--routing", "'zipf:big'", "number after the colon"),
    command("routing with NaN", f"{ESTIMATE} --routing zipf:nan", "--routing", "zipf:nan"),
    command("routing with a negative number", f"{ESTIMATE} --routing zipf:-1", "--routing", "zipf:-1", "more than 0"),
    command("routing beyond its range", f"{ESTIMATE} --routing zipf:50", "--routing", "zipf:50", "0..6"),
    command("routing with a value too many", f"{ESTIMATE} --routing uniform:1", "--routing", "'uniform:1'"),
    command("routing without a preset", f"{ESTIMATE} --routing preset", "--routing", "'preset'", "preset:"),
    command("routing with an unknown preset", f"{ESTIMATE} --routing preset:mixtral", "preset", "'mixtral'", "mixtral-8x7b"),
    command("routing of a dense model", "estimate --hardware h100_sxm --model llama-2-13b --routing zipf:1", "--routing", "llama-2-13b"),
    command("bad weight dtype", f"{ESTIMATE} --weight-dtype fp88", "--weight-dtype", "'fp88'", "did you mean 'fp8"),
    command("bad cache dtype", f"{ESTIMATE} --kv-dtype bf61", "--kv-dtype", "'bf61'", "did you mean 'bf16'?"),
    command("bad calibration", f"{ESTIMATE} --calibration none-such", "calibration", "'none-such'"),
    command("context longer than the model, estimate", f"{ESTIMATE} --context 40000", "context", "40000", "1..32768"),
    command("context and cache longer than the model", f"{ESTIMATE} --phase prefill --context 20000 --cached 20000", "40000", "1..32768"),
    command("redundant experts of a dense model", "estimate --hardware h100_sxm --model llama-2-13b --redundant-experts 2", "redundant"),
    Case("report of nothing", ("report", "{dir}/none"), ("no such directory", "moesim run"), "none"),
    Case("report of a file", ("report", "{dir}/r"), ("is a file",), "r", files={"r": "x"}),
    Case("report of another folder", ("report", "{dir}/r"), ("results.json",), "r", files={"r/x": ""}),
    Case("report of truncated results", ("report", "{dir}/r"), ("JSON", "cut off"), "r/results.json", files={"r/results.json": '{\n "schema_version": 2,\n "sys'}, line=3),
    Case("report of another version", ("report", "{dir}/r"), ("schema_version", "999"), "r/results.json", files={"r/results.json": '{\n "schema_version": 999}'}),
    Case("report of results without a version", ("report", "{dir}/r"), ("schema_version",), "r/results.json", files={"r/results.json": "{}"}),
    Case("report of results that are a list", ("report", "{dir}/r"), (), "r/results.json", files={"r/results.json": "[1]"}),
    Case("report of results not UTF-8", ("report", "{dir}/r"), ("cannot be read",), "r/results.json", files={"r/results.json": b"\xff"}),
    Case("report of incomplete results", ("report", "{dir}/r"), ("moesim_version", "run the scenario again"), "r/results.json", files={"r/results.json": '{"schema_version": 2}'}),
    Case("report of a serving run", ("report", "{dir}/r"), ("serving run",), "r/results.json", files={"r/results.json": '{"schema_version": 2, "deployment": "1 x TP8"}'}),
    Case("report of a sweep", ("report", "{dir}/r"), ("results.json", "sweep"), "r", files={"r/sweep.json": "{}"}),
    Case("serve scenario to run", ("run", "{dir}/s.yaml"), ("moesim serve",), "s.yaml", files={"s.yaml": "title: t\nhardware: h100_sxm\nsystem: {}\nserving: {}\n"}, line=3),
    Case("scenario to serve", ("serve", "{dir}/s.yaml"), ("moesim run",), "s.yaml", files={"s.yaml": SCENARIO}),
    Case("scenario to sweep", ("sweep", "{dir}/s.yaml"), ("moesim run",), "s.yaml", files={"s.yaml": SCENARIO}),
    Case("out is a file", ("run", "{dir}/s.yaml", "--out", "{dir}/o"), ("is a file", "directory"), "o", files={"s.yaml": SCENARIO, "o": "mine"}),
    Case("out is below a file", ("run", "{dir}/s.yaml", "--out", "{dir}/o/p"), ("is a file", "directory"), "o", files={"s.yaml": SCENARIO, "o": "mine"}),
]  # fmt: skip

CASES = [*KEYS_AND_VALUES, *FILES, *NAMES, *QUANTITIES, *SPLITS, *ROUTING_AND_WORKLOAD, *MODELS, *COMMANDS]
