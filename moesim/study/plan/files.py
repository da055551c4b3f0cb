"""What ``moesim plan --out`` writes: the result as JSON, its points as CSV, and a page of text."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from moesim.study.plan.results import HardwarePlan, PlanPoint, PlanResult

__all__ = ["plan_markdown", "write_plan"]


def write_plan(result: PlanResult, out: Path) -> None:
    """``plan.json``, ``points.csv``, ``near_misses.csv`` and ``plan.md`` into a folder, which is made."""
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result.model_dump(mode="json"), indent=2, allow_nan=False) + "\n"
    (out / "plan.json").write_text(text, encoding="utf-8")
    _csv(out / "points.csv", result.rows())
    _csv(out / "near_misses.csv", [miss.model_dump() for p in result.plans for miss in p.near_misses])
    (out / "plan.md").write_text(plan_markdown(result), encoding="utf-8")


def _csv(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        if rows:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def plan_markdown(result: PlanResult) -> str:
    """The answer as Markdown."""
    spec = result.spec
    goals = ", ".join(
        f"{name} {1e3 * value:g} ms"
        for name, value in (("TTFT", spec.ttft_s), ("TPOT", spec.tpot_s))
        if value is not None
    )
    lines = [
        f"# Plan for {spec.model}",
        "",
        f"{spec.input_tokens} tokens in, {spec.output_tokens} out; {goals or 'no goals'}.",
        "",
    ]
    lines += [f"- {sentence}" for sentence in result.sentences]
    for p in result.plans:
        lines += ["", f"## {p.hardware}", "", f"Costs from {p.calibration}.", "", *_points(p)]
        for point in (p.best, p.least):
            if point is not None:
                lines += ["", *_commands(point)]
        if p.confirmations:
            lines += ["", "In the serving simulation, and over the closed form:", "", *_confirmed(p)]
        if p.near_misses:
            lines += ["", "Near misses:", "", *(f"- {m.sentence}" for m in p.near_misses)]
    return "\n".join(lines) + "\n"


def _points(p: HardwarePlan) -> list[str]:
    head = "| | split | devices | batch | TTFT ms | TPOT ms | tokens/s/device | tokens/s/user | bottleneck | 90% |"
    rows = [("best", p.best), ("least", p.least), *(("front", point) for point in p.front)]
    lines = [head, "|---|---|--:|--:|--:|--:|--:|--:|---|---|"]
    for kind, point in rows:
        if point is None:
            continue
        main = point.main
        interval = "assumption" if point.error_frac is None else f"±{point.error_frac:.0%}"
        lines.append(
            f"| {kind} | {point.label} | {point.n_devices} | {main.batch} | {1e3 * point.ttft_s:.0f} | {1e3 * point.tpot_s:.1f} |"
            f" {point.output_tokens_per_s_per_device:.0f} | {point.output_tokens_per_s_per_user:.1f} |"
            f" {main.bottleneck.group} ({main.bottleneck.bound}) | {interval} |"
        )
    return lines


def _confirmed(p: HardwarePlan) -> list[str]:
    lines = ["| split | load | tokens/s/device | TTFT | TPOT | goals |", "|---|---|--:|--:|--:|---|"]
    for c in p.confirmations:
        if c.output_tokens_per_s_per_device is None or c.throughput_ratio is None:
            lines.append(f"| {c.split} | {c.note} | – | – | – | – |")
            continue
        rate = f"{c.output_tokens_per_s_per_device:.0f} ({c.throughput_ratio:.2f})"
        ttft, tpot = (
            f"{1e3 * value:.4g} ms ({ratio:.2f})" if value is not None and ratio is not None else "–"
            for value, ratio in ((c.ttft_s, c.ttft_ratio), (c.tpot_s, c.tpot_ratio))
        )
        met = "met" if c.meets_goals else f"missed{'; ' + c.note if c.note else ''}"
        lines.append(f"| {c.split} | {c.load} | {rate} | {ttft} | {tpot} | {met} |")
    return lines


def _commands(point: PlanPoint) -> list[str]:
    lines = [f"{point.label}:", "", "```sh"]
    for name, flags in (("vLLM", point.vllm), ("SGLang", point.sglang)):
        lines += [f"# {name}{': ' + flags.note if flags.note else ''}", *flags.commands]
    return [*lines, "```"]
