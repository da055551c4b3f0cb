"""Reports on disk: written to a hidden directory, then moved into place file by file, ``results.json`` last."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from moesim.errors import InputError

if TYPE_CHECKING:
    from moesim.study.results import RunResult
    from moesim.timeline import Timeline

__all__ = ["RESULTS_FILE", "TRACE_FILE", "load_result", "render", "results_json", "write_report"]

RESULTS_FILE = "results.json"
TRACE_FILE, PREFILL_TRACE_FILE = "trace.perfetto-trace", "trace-prefill.perfetto-trace"
_NUMBERS = re.compile(r"\[\n\s*((?:-?\d[\d.eE+-]*|null)(?:,\n\s*(?:-?\d[\d.eE+-]*|null))*)\n\s*\]")


def write_report(
    result: RunResult, out_dir: Path, timeline: Timeline | None = None, prefill_timeline: Timeline | None = None
) -> list[Path]:
    """Write page, Markdown, figures, tables, trace and results.

    Args:
        result: what to report.
        out_dir: made if missing; files of an earlier report in it are replaced, other files are left alone.
        timeline: of the reference system; written as a Perfetto trace with arrows for its sampled tokens if given; an
            earlier trace goes away otherwise.
        prefill_timeline: the same of its full prefill.

    Returns:
        The files written, ``results.json`` last. After a failure there is no half-written file: either the old one or the new.

    Raises:
        InputError: `out_dir` is a file or cannot be written.
    """
    files = _contents(result)
    for name, recorded in ((TRACE_FILE, timeline), (PREFILL_TRACE_FILE, prefill_timeline)):
        if recorded is not None:
            from moesim.report.trace import sampled_flows, trace_bytes

            reference = next((s for s in result.systems if s.name == result.scenario.reference.name), None)
            files[name] = trace_bytes(recorded, sampled_flows(recorded, reference.paths if reference else None))
    return _replace(Path(out_dir), files, keep_trace=False)


def render(out_dir: Path) -> list[Path]:
    """Write page, Markdown, figures and tables again from ``results.json``; the trace stays.

    Raises:
        InputError: as `load_result`, or the directory cannot be written.
    """
    return _replace(Path(out_dir), _contents(load_result(out_dir)), keep_trace=True)


def load_result(out_dir: Path) -> RunResult:
    """Read ``results.json`` of a report.

    Raises:
        InputError: missing, not JSON, of another schema version, or with fields that do not fit.
    """
    from pydantic import ValidationError

    from moesim.study.results import RunResult

    path = Path(out_dir) / RESULTS_FILE
    data = _read(Path(out_dir), path)
    _check_version(data, path)
    if isinstance(data, dict) and "systems" not in data and "deployment" in data:
        raise InputError(
            "holds a serving run; `moesim report` makes pages of `moesim run` only",
            file=str(path),
            hint="moesim serve wrote its page",
        )
    try:
        return RunResult.model_validate_json(json.dumps(data))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InputError(first["msg"], file=str(path), field=field, hint="run the scenario again") from None


def results_json(result: RunResult) -> str:
    """The record as JSON with sorted keys; lists of numbers on one line."""
    text = json.dumps(result.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return _NUMBERS.sub(lambda m: "[" + " ".join(m.group(1).split()) + "]", text) + "\n"


def _read(out_dir: Path, path: Path) -> object:
    if out_dir.is_file():
        raise InputError("is a file; name the directory of a report", file=str(out_dir))
    if not out_dir.exists():
        raise InputError(
            "no such directory", file=str(out_dir), hint="make a report with: moesim run SCENARIO --out DIR"
        )
    if not path.is_file():
        hint = "it is a sweep's or a plan's folder; run that command again" if _is_other(out_dir) else None
        raise InputError(f"no {RESULTS_FILE} in it, so it is no report of moesim run", file=str(out_dir), hint=hint)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        hint = "the file is damaged or cut off; run the scenario again"
        raise InputError(f"is not JSON: {error.msg}", file=str(path), line=error.lineno, hint=hint) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", file=str(path)) from None


def _is_other(out_dir: Path) -> bool:
    return any((out_dir / name).is_file() for name in ("sweep.json", "plan.json"))


def _check_version(data: object, path: Path) -> None:
    from moesim.study.results import SCHEMA_VERSION

    version = data.get("schema_version") if isinstance(data, dict) else None
    if version is None:
        raise InputError("is not a result of moesim: it has no schema_version", file=str(path))
    if version != SCHEMA_VERSION:
        raise InputError(
            "was written by another version of moesim", file=str(path), field="schema_version", value=version,
            allowed=str(SCHEMA_VERSION), hint="run the scenario again",
        )  # fmt: skip


def _contents(result: RunResult) -> dict[str, bytes]:
    """Everything but the trace, by path in the report; rendered from what ``results.json`` says, so `render` gives the same."""
    from moesim.report.frames import frames
    from moesim.report.markdown import FIGURE_FOLDER, render_markdown
    from moesim.report.page import render_page
    from moesim.report.sections import build
    from moesim.report.svg import standalone
    from moesim.study.results import RunResult

    stored = results_json(result)
    result = RunResult.model_validate_json(stored)
    document = build(result)
    texts = {"report.html": render_page(document), "report.md": render_markdown(document)}
    texts |= {f"{FIGURE_FOLDER}/{f.key}.svg": standalone(f.svg) for f in document.figures()}
    texts |= {
        f"tables/{name}.csv": frame.to_csv(index=False, lineterminator="\n") for name, frame in frames(result).items()
    }
    texts[RESULTS_FILE] = stored
    return {name: text.encode() for name, text in texts.items()}


def _replace(out_dir: Path, files: Mapping[str, bytes], *, keep_trace: bool) -> list[Path]:
    if out_dir.exists() and not out_dir.is_dir():
        raise InputError("is a file where a directory is meant", file=str(out_dir))
    order = sorted(files, key=lambda name: (name == RESULTS_FILE, name))
    try:
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        with _beside(out_dir) as staging:
            for name in order:
                (staging / name).parent.mkdir(exist_ok=True)
                (staging / name).write_bytes(files[name])
            for name in order:
                (out_dir / name).parent.mkdir(parents=True, exist_ok=True)
                if name == RESULTS_FILE:
                    _remove_stale(out_dir, files, keep_trace)
                (staging / name).replace(out_dir / name)
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror or error}", file=str(out_dir)) from error
    return [out_dir / name for name in order]


@contextmanager
def _beside(out_dir: Path) -> Iterator[Path]:
    """A directory on the same file system that goes away in the end: inside `out_dir`, which may be a mount, if it exists."""
    home = out_dir if out_dir.is_dir() else out_dir.resolve().parent
    staging = Path(tempfile.mkdtemp(prefix=".moesim-", dir=home))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _remove_stale(out_dir: Path, files: Mapping[str, bytes], keep_trace: bool) -> None:
    """Figures, tables and traces of an earlier report that the new one does not have."""
    old = [*out_dir.glob("figures/*.svg"), *out_dir.glob("tables/*.csv")]
    if not keep_trace:
        old += [*out_dir.glob(TRACE_FILE), *out_dir.glob(PREFILL_TRACE_FILE)]
    for path in old:
        if path.relative_to(out_dir).as_posix() not in files:
            path.unlink()
