"""Recorded routing: a Parquet format of who chose whom, its validation, and replay.

The format is described in docs/routing-trace.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import TraceError
from moesim.routing.replay import TraceRouter

__all__ = ["FORMAT_VERSION", "RecordedTrace", "read_trace", "write_trace"]

FORMAT_VERSION = 1
_COLUMNS = {"token": "int64", "layer": "int32", "choice": "int8", "expert": "int32", "weight": "float32"}
_META = ("model", "n_layers", "n_experts", "top_k")
_PREFIX = "moesim_routing."


@dataclass(frozen=True, slots=True, eq=False)
class RecordedTrace:
    """Every token's experts in every MoE layer, as recorded.

    Attributes:
        experts: [n_tokens, L, K], in order of choice; int16.
        weights: [n_tokens, L, K], the router's weights of the choices.
        token_domain: [n_tokens], index into `domains`.
        domains: names; one empty name where the trace has none.
        model: what was recorded.
    """

    experts: NDArray[np.int16]
    weights: NDArray[np.float32]
    n_experts: int
    model: str
    token_domain: NDArray[np.int32]
    domains: tuple[str, ...] = ("",)
    file: str | None = None

    def router(self, domain: str | None = None) -> TraceRouter:
        """The trace as a router that replays it, all of it or one domain.

        Raises:
            TraceError: no such domain.
        """
        if domain is None:
            experts = self.experts
        elif domain not in self.domains:
            raise TraceError("the trace has no such domain", file=self.file, field="routing.domain", value=domain,
                             allowed=", ".join(d for d in self.domains if d) or "none")  # fmt: skip
        else:
            experts = self.experts[self.token_domain == self.domains.index(domain)]
        name = f"recorded trace of {self.model}" + (f", domain {domain}" if domain else "")
        return TraceRouter.of(experts, self.n_experts, f"{name} ({len(experts)} tokens)")


def write_trace(
    path: Path,
    experts: NDArray[Any],
    n_experts: int,
    model: str,
    weights: NDArray[Any] | None = None,
    domains: Sequence[str] | None = None,
) -> None:
    """Write a routing trace.

    Args:
        path: the file.
        experts: [n_tokens, L, K], in order of choice.
        n_experts: E.
        model: name of the model that routed.
        weights: [n_tokens, L, K], the router's weights; 1 / K by default.
        domains: one name per token, if there are any.

    Raises:
        TraceError: arrays that do not fit each other, experts out of range or twice in one token.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    array = np.asarray(experts)
    if array.ndim != 3 or (domains is not None and len(domains) != len(array)):
        raise TraceError("experts must be [tokens, layers, k] with one domain per token", value=array.shape)
    _, n_layers, top_k = array.shape
    given = np.full(array.shape, 1.0 / top_k) if weights is None else np.asarray(weights)
    _check_choices(array, n_experts, None)
    token, layer, choice = (axis.ravel() for axis in np.indices(array.shape))
    columns: dict[str, Any] = {"token": token, "layer": layer, "choice": choice, "expert": array, "weight": given}
    data = {name: np.asarray(columns[name]).ravel().astype(kind) for name, kind in _COLUMNS.items()}
    if domains is not None:
        data["domain"] = pa.array(np.repeat(np.asarray(domains, dtype=object), n_layers * top_k), pa.string())
    meta = {
        "format_version": FORMAT_VERSION,
        "model": model,
        "n_layers": n_layers,
        "n_experts": n_experts,
        "top_k": top_k,
    }
    table = pa.table(data).replace_schema_metadata({f"{_PREFIX}{k}": str(v) for k, v in meta.items()})
    part = path.with_name(path.name + ".part")
    pq.write_table(table, part, compression="zstd")
    part.replace(path)


def read_trace(path: Path, n_layers: int, n_experts: int, top_k: int) -> RecordedTrace:
    """Read a routing trace and check it against the model that is to replay it.

    Args:
        path: the file.
        n_layers: L, MoE layers of the model.
        n_experts: E.
        top_k: K.

    Raises:
        TraceError: no such file, not Parquet or cut off, missing columns, another model's sizes, an expert out of range or
            twice in one token, or tokens that are not complete.
    """
    table, meta = _read_table(path)
    file = str(path)
    for name, want in (("n_layers", n_layers), ("n_experts", n_experts), ("top_k", top_k)):
        if int(meta[name]) != want:
            raise TraceError(f"was recorded on {meta['model']} with another {name}", file=file, field=name,
                             value=int(meta[name]), allowed=str(want))  # fmt: skip
    columns = {name: _column(table, name, file) for name in _COLUMNS}
    order, token_ids = _in_order(columns, n_layers, top_k, file)
    shape = (len(token_ids), n_layers, top_k)
    experts = columns["expert"][order].reshape(shape)
    _check_choices(experts, n_experts, file)
    domain, names = _domains(table, order, shape)
    weights = columns["weight"][order].reshape(shape).astype(np.float32)
    return RecordedTrace(experts.astype(np.int16), weights, n_experts, meta["model"], domain, names, file)


def _read_table(path: Path) -> tuple[Any, Mapping[str, str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = str(path)
    if path.is_dir():
        raise TraceError("is a directory where a trace is meant", file=file, hint="name a Parquet file inside it")
    if not path.is_file():
        raise TraceError("no such trace", file=file, hint="check the path")
    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise TraceError("is not a readable Parquet file (damaged or cut off)", file=file,
                         hint=str(error).splitlines()[0][:120]) from None  # fmt: skip
    missing = [name for name in _COLUMNS if name not in table.column_names]
    if missing:
        raise TraceError(f"has no column {', '.join(missing)}", file=file, allowed=", ".join(_COLUMNS))
    raw = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    meta = {k.removeprefix(_PREFIX): v for k, v in raw.items() if k.startswith(_PREFIX)}
    lacking = [name for name in ("format_version", *_META) if name not in meta]
    if lacking:
        raise TraceError(f"its metadata lack {', '.join(lacking)}", file=file, hint="see docs/routing-trace.md")
    for name in ("format_version", "n_layers", "n_experts", "top_k"):
        if not meta[name].isdigit():
            raise TraceError("must be a whole number in the metadata", file=file, field=name, value=meta[name])
    if int(meta["format_version"]) != FORMAT_VERSION:
        raise TraceError("is of another format version", file=file, field="format_version",
                         value=int(meta["format_version"]), allowed=str(FORMAT_VERSION))  # fmt: skip
    return table, meta


def _column(table: Any, name: str, file: str) -> NDArray[Any]:
    column = table.column(name)
    if column.null_count:
        raise TraceError(f"{column.null_count} rows have no value", file=file, field=name)
    values: NDArray[Any] = column.to_numpy()
    whole = name != "weight"
    if not np.issubdtype(values.dtype, np.integer if whole else np.floating):
        raise TraceError("is of the wrong type", file=file, field=name, value=str(values.dtype), allowed=_COLUMNS[name])
    if not whole and not (np.isfinite(values).all() and (values >= 0).all()):
        raise TraceError("must be finite and not negative", file=file, field=name)
    return values.astype(np.float64 if not whole else np.int64)


def _in_order(
    columns: Mapping[str, NDArray[Any]], n_layers: int, top_k: int, file: str
) -> tuple[NDArray[np.intp], NDArray[Any]]:
    """Rows sorted by token, layer, choice, and the token ids; every token must have all L x K rows once."""
    for name, limit in (("layer", n_layers), ("choice", top_k)):
        values = columns[name]
        bad = np.flatnonzero((values < 0) | (values >= limit))
        if bad.size:
            raise TraceError(f"row {bad[0]}: out of range", file=file, field=name, value=int(values[bad[0]]),
                             allowed=f"0..{limit - 1}")  # fmt: skip
    ids, token = np.unique(columns["token"], return_inverse=True)
    if not ids.size:
        raise TraceError("holds no tokens", file=file)
    key = (token.astype(np.int64) * n_layers + columns["layer"]) * top_k + columns["choice"]
    order = np.argsort(key, kind="stable")
    wanted = np.arange(ids.size * n_layers * top_k)
    if key.size != wanted.size or not np.array_equal(key[order], wanted):
        seen = np.bincount(key, minlength=wanted.size)[: wanted.size]
        at = int(np.flatnonzero(seen != 1)[0])
        where = f"token {ids[at // (n_layers * top_k)]}, layer {at // top_k % n_layers}, choice {at % top_k}"
        raise TraceError(f"{where} stands {int(seen[at])} times", file=file, allowed="once each",
                         hint="the trace is not complete" if seen[at] == 0 else "remove duplicates")  # fmt: skip
    return order, ids


def _check_choices(experts: NDArray[Any], n_experts: int, file: str | None) -> None:
    bad = np.argwhere((experts < 0) | (experts >= n_experts))
    if bad.size:
        token, layer, choice = bad[0]
        raise TraceError(f"token {token}, layer {layer}: expert out of range", file=file, field="expert",
                         value=int(experts[token, layer, choice]), allowed=f"0..{n_experts - 1}")  # fmt: skip
    ordered = np.sort(experts, axis=2)
    twice = np.argwhere(ordered[:, :, 1:] == ordered[:, :, :-1])
    if twice.size:
        token, layer, _ = twice[0]
        raise TraceError(f"token {token}, layer {layer}: an expert is chosen twice", file=file, field="expert",
                         value=experts[token, layer].tolist(), allowed="distinct experts")  # fmt: skip


def _domains(
    table: Any, order: NDArray[np.intp], shape: tuple[int, int, int]
) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    if "domain" not in table.column_names:
        return np.zeros(shape[0], np.int32), ("",)
    labels = np.asarray(table.column("domain").to_pylist(), dtype=object)[order[:: shape[1] * shape[2]]]
    names, index = np.unique(np.where(labels == None, "", labels).astype(str), return_inverse=True)  # noqa: E711
    return index.astype(np.int32), tuple(names.tolist())
