"""Import of every real Hugging Face config that was collected."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hf_collected import IMPORTED, REFUSED

from moesim.errors import InputError
from moesim.specs import hf
from moesim.specs.model import LinearAttention

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not (DATA / "hf_configs").is_dir(), reason="no ../shared/data beside the checkout")


def _read(stem: str) -> dict[str, Any]:
    folder = DATA / "hf_configs"
    path = folder / f"{stem}_config.json"
    path = path if path.is_file() else folder / f"{stem}.json"
    return dict(json.loads(path.read_text()))


@needs_data
def test_every_collected_config_is_in_the_tables():
    found = {path.stem.removesuffix("_config") for path in (DATA / "hf_configs").glob("*.json")}
    assert found == set(IMPORTED) | set(REFUSED)
    assert len(found) >= 94


@needs_data
@pytest.mark.parametrize("stem", IMPORTED)
def test_collected_config_imports_with_its_layer_plan(stem):
    hidden, kinds, moe, n_mtp, tied = IMPORTED[stem]
    model = hf.import_config(_read(stem), stem)
    assert model.hidden_size == hidden
    assert dict(Counter(layer.kind for layer in model.layers)) == kinds
    found = model.moe_ffn
    shape = None
    if found is not None:
        shape = (
            found.n_routed_experts, found.num_experts_per_tok, found.moe_intermediate_size, found.n_shared_experts
        )  # fmt: skip
    assert shape == moe
    assert len(model.mtp_layers) == n_mtp
    assert model.tie_word_embeddings is tied


@needs_data
@pytest.mark.parametrize("stem", REFUSED)
def test_collected_config_is_refused_by_the_key_not_understood(stem):
    with pytest.raises(InputError) as caught:
        hf.import_config(_read(stem), stem)
    assert caught.value.field == REFUSED[stem]
    assert "\n" not in str(caught.value)
    assert REFUSED[stem] in str(caught.value)


def _number(text: str) -> int | None:
    return int(float(text)) if text else None


@needs_data
def test_shapes_agree_with_the_collected_table():
    """models.csv was made by other hands from the same files."""
    n_rows = 0
    for row in csv.DictReader((DATA / "models.csv").read_text().splitlines()):
        stem = "aic--" + Path(row["source"].split(":")[-1]).name.removesuffix("_config.json")
        if row["confidence"] != "config" or stem not in IMPORTED:
            continue
        n_rows += 1
        model = hf.import_config(_read(stem), stem)
        assert len(model.layers) == _number(row["layers"]), stem
        assert model.vocab_size == _number(row["vocab"]), stem
        assert model.tie_word_embeddings == (row["tied_embed"] == "1"), stem
        assert len(model.moe_layers) == (_number(row["n_moe_layers"]) or 0), stem
        heads = {layer.attention.n_heads for layer in model.layers if not isinstance(layer.attention, LinearAttention)}
        assert heads == {_number(row["heads"])}, stem
        if model.moe_ffn is not None:
            moe = model.moe_ffn
            assert moe.n_routed_experts == _number(row["n_routed_experts"]), stem
            assert moe.num_experts_per_tok == _number(row["top_k"]), stem
            assert moe.moe_intermediate_size == _number(row["moe_ffn"]), stem
            assert moe.shared_intermediate_size == (_number(row["shared_ffn"]) or 0), stem
    assert n_rows >= 30
