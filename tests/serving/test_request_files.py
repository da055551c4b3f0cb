from __future__ import annotations

import json

import pytest

from moesim.errors import InputError
from moesim.specs.serving import RequestFormat
from moesim.study.requests import read_requests


def write(path, lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


ROW = {"request_id": "a", "arrival_s": 0.5, "input_tokens": 10, "output_tokens": 3}


def test_jsonl(tmp_path):
    rows = [
        ROW,
        ROW | {"request_id": "b", "arrival_s": 2, "prefix_hashes": [4, 5], "hash_tokens": 32, "domain": "code"},
    ]
    a, b = read_requests(write(tmp_path / "r.jsonl", rows))
    assert (a.request_id, a.arrival_s, a.input_tokens, a.output_tokens) == ("a", 0.5, 10, 3)
    assert (b.prefix_hashes, b.hash_tokens, b.domain) == ((4, 5), 32, "code")


def test_csv_and_parquet(tmp_path):
    file = write(
        tmp_path / "r.csv", ["request_id,arrival_s,input_tokens,output_tokens,prefix_hashes", "x,1.5,7,2,1 2 3"]
    )
    (row,) = read_requests(file)
    assert (row.arrival_s, row.prefix_hashes) == (1.5, (1, 2, 3))
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(
        pa.table({"arrival_s": [0.0, 1.0], "input_tokens": [5, 6], "output_tokens": [1, 2]}), tmp_path / "r.parquet"
    )
    first, second = read_requests(tmp_path / "r.parquet")
    assert (first.request_id, second.arrival_s, second.input_tokens) == ("0", 1.0, 6)


def test_vllm_log_names_and_wall_clock(tmp_path):
    rows = [
        {"request_id": "0", "input_toks": 9, "output_toks": 4, "arrival_time": 1777142838.25},
        {"request_id": "1", "input_toks": 9, "output_toks": 4, "arrival_time": 1777142840.0},
    ]
    assert [r.arrival_s for r in read_requests(write(tmp_path / "r.jsonl", rows))] == [0.0, 1.75]


def test_azure_2023(tmp_path):
    lines = [
        "TIMESTAMP,ContextTokens,GeneratedTokens", "2023-11-16 18:15:46.6805900,374,44",
        "2023-11-16 18:15:50.9951690,396,109",
    ]  # fmt: skip
    first, second = read_requests(write(tmp_path / "t.csv", lines))
    assert (first.arrival_s, first.input_tokens, first.output_tokens) == (0.0, 374, 44)
    assert second.arrival_s == pytest.approx(4.314579, abs=1e-5)


def test_mooncake(tmp_path):
    rows = [
        {"timestamp": 0, "input_length": 1030, "output_length": 5, "hash_ids": [0, 1, 2]},
        {"timestamp": 1500, "input_length": 600, "output_length": 6, "hash_ids": [0, 9]},
    ]
    first, second = read_requests(write(tmp_path / "m.jsonl", rows), RequestFormat.AUTO)
    assert (second.arrival_s, second.prefix_hashes, second.hash_tokens) == (1.5, (0, 9), 512)
    assert first.input_tokens == 1030


def test_limit_stops_reading(tmp_path):
    assert len(list(read_requests(write(tmp_path / "r.jsonl", [ROW, "not json"]), limit=1))) == 1


@pytest.mark.parametrize(
    ("lines", "words", "line"),
    [
        ([ROW | {"arrival_s": 3}, ROW], "arrives before", 2),
        ([ROW, {"arrival_s": 1, "input_tokens": 3}], "output_tokens: is missing", 2),
        ([ROW | {"input_tokens": -1}], "whole number", 1),
        ([ROW | {"input_tokens": 1.5}], "whole number", 1),
        ([ROW | {"input_tokens": True}], "whole number", 1),
        ([ROW | {"arrival_s": "soon"}], "time in seconds", 1),
        ([ROW | {"arrival_s": -2}], "time in seconds", 1),
        ([ROW, "{"], "is not JSON", 2),
        ([ROW, "[1]"], "not an object", 2),
        ([""], "holds no requests", None),
        ([ROW | {"prefix_hashes": ["x"]}], "prefix_hashes", 1),
    ],
)
def test_bad_lines_are_named(tmp_path, lines, words, line):
    file = write(tmp_path / "r.jsonl", lines)
    with pytest.raises(InputError, match=words) as caught:
        list(read_requests(file))
    assert caught.value.file == str(file)
    assert caught.value.line == line
    assert "\n" not in str(caught.value)


def test_bad_files(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        list(read_requests(tmp_path / "none.jsonl"))
    with pytest.raises(InputError, match="ending"):
        list(read_requests(write(tmp_path / "r.txt", [ROW])))
    (tmp_path / "r.parquet").write_text("junk")
    with pytest.raises(InputError, match="Parquet"):
        list(read_requests(tmp_path / "r.parquet"))
    with pytest.raises(InputError, match="is not a time"):
        list(read_requests(write(tmp_path / "a.csv", ["TIMESTAMP,ContextTokens,GeneratedTokens", "noon,1,2"])))
