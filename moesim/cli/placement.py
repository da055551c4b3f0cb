"""``moesim placement``: where experts should lie, and what imbalance costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesim.cli.choices import choice, routing_spec
from moesim.cli.progress import progress_bar
from moesim.cli.run import check_out
from moesim.cli.table import print_json, table
from moesim.errors import InputError
from moesim.ops import Phase
from moesim.routing.window_drift import DriftKind
from moesim.specs.catalog import load_model
from moesim.specs.scenario import Engine
from moesim.study.files import write_csv, write_json
from moesim.study.placements import PlacementQuestion, PlacementTable, Study, placement_tables

__all__ = ["PlacementArguments", "placement_command"]

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PlacementArguments:
    """The command's options as typed."""

    model: str
    hardware: str
    ep: int
    routing: list[str]
    redundant: list[int]
    study: list[str]
    phase: str
    batch_per_rank: int
    context: int
    engine: str
    overlap: bool
    drift: str
    steps: int
    period: list[int]
    calibration: str | None
    seed: int
    json: bool
    out: Path | None


def placement_command(args: PlacementArguments) -> None:
    """Ask, write, and say what came out."""
    question, studies = _question(args), _studies(args.study)
    if args.out is not None:
        check_out(args.out)
    with progress_bar() as bar:
        task = bar.add_task("starting", total=1.0)
        tables = placement_tables(
            question, studies, lambda what, done: bar.update(task, description=what, completed=done)
        )
    if args.out is not None:
        _write(tables, args.out)
    if args.json:
        print_json([_record(t) for t in tables])
        return
    print(f"{question.model.name} on {question.hardware}, EP{question.ep_size}, {question.phase.value}")
    for found in tables:
        _print(found)
    if args.out is not None:
        print(f"\nwritten to {args.out}")


def _question(args: PlacementArguments) -> PlacementQuestion:
    return PlacementQuestion(
        model=load_model(args.model), hardware=args.hardware, ep_size=args.ep,
        routers=tuple(routing_spec(text) for text in args.routing), redundant=tuple(args.redundant),
        phase=choice(Phase, args.phase, "--phase"), batch_per_rank=args.batch_per_rank, context=args.context,
        engine=choice(Engine, args.engine, "--engine"), overlap=args.overlap, calibration=args.calibration,
        drift=choice(DriftKind, args.drift, "--drift"), n_steps=args.steps, periods_steps=tuple(args.period), seed=args.seed,
    )  # fmt: skip


def _studies(words: Sequence[str]) -> tuple[Study, ...] | None:
    """None stands for all that apply."""
    if "all" in words:
        if len(words) > 1:
            raise InputError("all is all studies", field="--study", value=", ".join(words), allowed="all, or names")
        return None
    return tuple(choice(Study, word, "--study") for word in words)


def _record(found: PlacementTable) -> dict[str, object]:
    return {"study": found.study.value, "title": found.title, "notes": list(found.notes), "rows": list(found.rows)}


def _write(tables: Sequence[PlacementTable], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for found in tables:
        write_csv(out / f"{found.study.value}.csv", found.rows)
    write_json(out / "placement.json", [_record(t) for t in tables])


def _print(found: PlacementTable) -> None:
    columns = _COLUMNS[found.study]
    print(f"\n{found.title}")
    table([name for name, _ in columns], [[show(row) for _, show in columns] for row in found.rows])
    for note in found.notes:
        print(f"- {note}")


def _field(name: str, shape: str = "{}", scale: float = 1.0) -> Callable[[Row], str]:
    """One value as text; a dash for none."""

    def show(row: Row) -> str:
        value = row[name]
        if value is None:
            return "-"
        return shape.format(value * scale if isinstance(value, float) else value)

    return show


def _policy(row: Row) -> str:
    if row["period_steps"] is None:
        return "never"
    gain = f", gains over {row['min_gain_frac']:.0%}" if row["min_gain_frac"] else ""
    return f"every {row['period_steps']}{gain}"


def _load(row: Row) -> str:
    return str(row["skew"])


_COLUMNS: dict[Study, tuple[tuple[str, Callable[[Row], str]], ...]] = {
    Study.PRICE: (
        ("load", _load), ("slots over", _field("n_redundant")), ("placement", _field("placement")),
        ("max/mean", _field("rank_imbalance_ratio", "{:.2f}")), ("ms", _field("time_s", "{:.1f}", 1e3)),
        ("ms even", _field("balanced_time_s", "{:.1f}", 1e3)), ("tok/s", _field("tokens_per_s", "{:,.0f}")),
        ("tok/s lost", _field("lost_tokens_per_s", "{:,.0f}")), ("lost", _field("lost_frac", "{:.0%}")),
        ("$/Mtok", _field("usd_per_million_tokens", "{:.3f}")), ("$ lost", _field("lost_usd_per_million_tokens", "{:.3f}")),
        ("GB/rank for slots", _field("redundant_bytes_per_rank", "{:.2f}", 1e-9)),
        ("fits", lambda row: "yes" if row["fits"] else "no"),
    ),
    Study.WINDOW: (
        ("placed again", _policy), ("max/mean", _field("rank_imbalance_ratio", "{:.2f}")),
        ("slots moved", _field("moved_slots_per_replacement", "{:,.0f}")),
        ("GB moved", _field("moved_bytes_per_replacement", "{:,.0f}", 1e-9)), ("over NICs", _field("nic_bytes_frac", "{:.0%}")),
        ("ms to move", _field("move_s", "{:.0f}", 1e3)), ("ms/step", _field("step_s", "{:.1f}", 1e3)),
        ("ms/step with moves", _field("total_s", "{:.1f}", 1e3)),
    ),
    Study.COPIES: (
        ("rule", _field("rule")), ("max/mean", _field("rank_imbalance_ratio", "{:.3f}")),
        ("on own rank", _field("own_rank", "{:.2f}")), ("in domain", _field("in_domain", "{:.2f}")),
        ("across domains", _field("cross_domain", "{:.2f}")),
        ("assignments across", _field("cross_assignments", "{:.2f}")),
    ),
    Study.LOCALITY: (
        ("placement", _field("placement")), ("home", _field("home")), ("crossings", _field("crossings", "{:.2f}")),
        ("on tokens seen", _field("crossings_seen", "{:.2f}")), ("rank max/mean", _field("rank_imbalance_ratio", "{:.2f}")),
        ("domain max/mean", _field("domain_imbalance_ratio", "{:.2f}")),
    ),
    Study.LIMITS: (
        ("groups of a token", lambda row: f"{row['topk_group']} of {row['n_group']}"),
        ("nodes touched", _field("nodes_touched", "{:.2f}")), ("most", _field("max_nodes_touched")),
        ("across nodes", _field("cross_domain", "{:.2f}")), ("across, balanced", _field("cross_domain_eplb", "{:.2f}")),
        ("expert max/mean", _field("expert_imbalance_ratio", "{:.1f}")), ("rank", _field("rank_imbalance_ratio", "{:.2f}")),
        ("rank, balanced", _field("rank_imbalance_ratio_eplb", "{:.2f}")),
    ),
}  # fmt: skip
