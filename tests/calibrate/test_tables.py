"""The tidy schema, its checks, and the importers on small made-up sources."""

import numpy as np
import pandas as pd
import pytest

from moesim.calibrate.importers.aiconfigurator import import_aiconfigurator
from moesim.calibrate.importers.synthetic_loads import balanced, group_limit, power_law, rank_load, summarise
from moesim.calibrate.importing import import_table
from moesim.calibrate.tables import MeasurementTable, read_table, write_table
from moesim.errors import InputError, MissingExtraError
from moesim.specs.catalog import load_model


def gemm_rows(**over):
    base = {"op_kind": "gemm", "device": "h100_sxm", "stack": "x", "version": "1", "dtype": "bf16", "measured_s": 1e-5}
    return pd.DataFrame([{**base, "m": m, "n": 64, "k": 128, **over} for m in (1, 2, 4)])


def test_a_table_survives_csv_and_parquet(tmp_path):
    table = MeasurementTable.of(gemm_rows())
    for name in ("t.csv", "t.csv.gz", "t.parquet"):
        write_table(table, tmp_path / name)
        pd.testing.assert_frame_equal(read_table(tmp_path / name).frame, table.frame)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (gemm_rows().drop(columns="measured_s"), "lacks a needed column"),
        (gemm_rows().drop(columns="k"), "need this column"),
        (gemm_rows(measured_s=0.0), "above zero"),
        (gemm_rows(measured_s=-1e-6), "above zero"),
        (gemm_rows(m=np.nan), "need this column"),
        (gemm_rows(dtype="bf15"), "unknown word"),
        (gemm_rows(op_kind="softmax"), "unknown word"),
        (gemm_rows().head(0), "no rows"),
    ],
)
def test_bad_tables_are_refused_with_one_line(rows, message):
    with pytest.raises(InputError, match=message) as error:
        MeasurementTable.of(rows, "t.csv")
    assert "\n" not in str(error.value)


def test_user_csv_with_mapping_and_unit(tmp_path):
    path = tmp_path / "mine.csv"
    pd.DataFrame({"rows": [1, 2], "cols": 64, "depth": 128, "us": [5.0, 6.0]}).to_csv(path, index=False)
    columns = {"m": "rows", "n": "cols", "k": "depth", "measured_s": "us"}
    constants = {"op_kind": "gemm", "device": "l4", "stack": "mine", "dtype": "bf16"}
    table = import_table(path, columns=columns, constants=constants, time_unit="us")
    assert table.frame["measured_s"].tolist() == pytest.approx([5e-6, 6e-6])
    for bad, message in (
        ({"time_unit": "minutes"}, "unknown time unit"),
        ({"columns": {**columns, "k": "deep"}}, "no such column"),
        ({"columns": {**columns, "kk": "depth"}}, "not a column of the schema"),
        ({"constants": {"op_kind": "gemm"}}, "needs a column or a constant"),
    ):
        with pytest.raises(InputError, match=message):
            import_table(path, **({"columns": columns, "constants": constants, "time_unit": "us"} | bad))


def write_parquet(folder, family, stack, version, name, frame):
    path = folder / "systems" / "data" / "h100_sxm" / family / stack / version
    path.mkdir(parents=True)
    frame.to_parquet(path / f"{name}.parquet")


def test_aiconfigurator_units_and_loads(tmp_path):
    moe = {"kernel_source": "k", "moe_dtype": "fp8_block", "num_tokens": 64, "hidden_size": 4096, "inter_size": 1536, "topk": 8,
           "num_experts": 128, "moe_tp_size": 1, "moe_ep_size": 4, "distribution": "balanced", "latency": 0.5}  # fmt: skip
    write_parquet(
        tmp_path, "moe", "vllm", "0.24.0", "moe_perf", pd.DataFrame([moe, {**moe, "distribution": "power_law_1.2"}])
    )
    nccl = {"op_name": "alltoall", "nccl_dtype": "half", "num_gpus": 8, "message_size": 1000, "latency": 0.02}
    write_parquet(tmp_path, "comm", "nccl", "2.29.2", "nccl_perf", pd.DataFrame([nccl]))
    frame = import_aiconfigurator(tmp_path, "h100_sxm").frame.set_index("op_kind")
    even = frame.loc["moe"].iloc[0]
    assert even["measured_s"] == 5e-4
    assert (even["n_assignments"], even["n_experts_hit"], even["max_expert_tokens"]) == (128, 32, 4)
    assert even["n_local_experts"] == 32
    skewed = frame.loc["moe"].iloc[1]
    assert skewed["n_assignments"] > 128
    assert skewed["max_expert_tokens"] > 4
    exchange = frame.loc["all_to_all"]
    assert (exchange["message_bytes"], exchange["measured_s"]) == (2000, pytest.approx(2e-5))
    with pytest.raises(InputError, match="no tables for this device"):
        import_aiconfigurator(tmp_path, "tpu_v4")
    with pytest.raises(InputError, match="holds no aiconfigurator tables"):
        import_table(tmp_path / "systems" / "data" / "h100_sxm", device="h100_sxm")


def test_aiconfigurator_state_kernels_without_convolutions(tmp_path):
    common = {
        "op_name": "gdn",
        "batch_size": 4,
        "num_k_heads": 8,
        "head_k_dim": 128,
        "num_v_heads": 16,
        "head_v_dim": 128,
    }
    rows = [
        {**common, "kernel_source": "causal_conv1d_fn", "phase": "context", "seq_len": 512, "latency": 0.01},
        {**common, "kernel_source": "chunk_gated_delta_rule", "phase": "context", "seq_len": 512, "latency": 0.2},
        {
            **common,
            "kernel_source": "fused_recurrent_gated_delta_rule",
            "phase": "generation",
            "seq_len": 1,
            "latency": 0.02,
        },
    ]
    write_parquet(tmp_path, "linear_attention", "vllm", "0.24.0", "gdn_perf", pd.DataFrame(rows))
    frame = import_aiconfigurator(tmp_path, "h100_sxm").frame.set_index("op_kind")
    assert sorted(frame.index) == ["linear_attention_decode", "linear_attention_prefill"]
    prefill = frame.loc["linear_attention_prefill"]
    assert (prefill["q_len"], prefill["n_heads"], prefill["n_kv_heads"]) == (512, 16, 8)
    assert prefill["measured_s"] == pytest.approx(2e-4)


def test_missing_package_names_the_extra():
    import importlib.util

    if importlib.util.find_spec("aiconfigurator_core") is not None:
        pytest.skip("aiconfigurator-core is installed here")
    with pytest.raises(MissingExtraError, match="aiconfigurator-core"):
        import_table("aiconfigurator", device="h100_sxm")


def test_power_law_loads_conserve_tokens_and_time_the_hottest_rank():
    rng = np.random.default_rng(0)
    for tokens, experts, topk, ranks in ((1, 128, 8, 2), (7, 64, 6, 8), (300, 8, 2, 2), (4096, 256, 8, 32)):
        routing = power_law(tokens, experts, topk, ranks, 1.2, rng)
        assert routing.weights.sum() == tokens
        assert all(len(set(row)) == topk for row in routing.chosen.tolist())
        counts = np.bincount(routing.chosen.ravel(), weights=np.repeat(routing.weights, topk), minlength=experts)
        assert counts.max() <= tokens
        per_rank = counts.reshape(ranks, -1).sum(axis=1)
        assert per_rank[0] == per_rank.max()


def test_group_limited_routing_empties_half_of_the_groups():
    plain = balanced(64, 256, 8)
    limited = group_limit(plain, 256, 8, 4)
    assert summarise([rank_load(plain, 256)]).n_experts_hit == 256
    assert summarise([rank_load(limited, 256)]).n_experts_hit == 128
    assert summarise([rank_load(limited, 256)]).n_assignments == 64 * 8
    assert summarise([rank_load(limited, 128)]).n_assignments == 64 * 8  # the same work on half of the experts


def test_layer_profile_of_a_dense_and_moe_model(tmp_path):
    folder = tmp_path / "qwen" / "tp1"
    folder.mkdir(parents=True)
    pd.DataFrame({"layer": ["qkv_proj", "act_fn"], "tokens": 8, "time_us": 10.0}).to_csv(
        folder / "dense.csv", index=False
    )
    pd.DataFrame({"tokens": [8], "activated_experts": [32], "time_us": [50.0]}).to_csv(folder / "moe.csv", index=False)
    attention = {
        "prefill_chunk": [0, 128],
        "kv_prefill": [0, 64],
        "n_decode": [4, 0],
        "kv_decode": [100, 0],
        "time_us": 7.0,
    }
    pd.DataFrame(attention).to_csv(folder / "attention.csv", index=False)
    model = load_model("qwen3-30b-a3b")
    frame = import_table(tmp_path / "qwen", model=model, device="rtx_pro_6000").frame.set_index("op_kind")
    assert frame.loc["gemm", ["m", "n", "k"]].tolist() == [8, (32 + 8) * 128, 2048]
    assert frame.loc["moe", ["n_assignments", "n_experts_hit", "max_expert_tokens"]].tolist() == [64, 32, 2]
    assert frame.loc["attention_prefill", ["q_len", "kv_len"]].tolist() == [128, 192]
    assert frame.loc["attention_decode", ["batch", "kv_len"]].tolist() == [4, 101]
    assert frame.loc["moe", "measured_s"] == pytest.approx(5e-5)
