"""What a ranking by cost leaves out where the cases do not answer equally well."""

from __future__ import annotations

from moesim.specs.sweep import Question
from moesim.study.sweep.results import SweepResult
from moesim.study.sweep.words import path_words

__all__ = ["quality_note"]

#: Fields beside those of the model that change what it says.
_FORMATS = ("weight_dtype", "kv_dtype")


def quality_note(result: SweepResult) -> str:
    """Which swept fields change how good answers are, and what would have to be known; empty where none does or a law weighs it.

    >>> _changes_answers("systems.0.model.num_experts_per_tok"), _changes_answers("systems.0.parallel.tp_size")
    (True, False)
    """
    if result.spec.law is not None or result.spec.report.question is Question.TRAINING:
        return ""
    changed = [path_words(c.path) for c in result.settings if len(c.values) > 1 and _changes_answers(c.path)]
    if not changed:
        return ""
    listed = changed[0] if len(changed) == 1 else f"{', '.join(changed[:-1])} and {changed[-1]}"
    also = "also changes" if len(changed) == 1 else "also change"
    return (
        f"This ranks by cost alone: {listed} {also} how good the answers are, which is not in these numbers. To "
        "weigh it, know each design's loss at equal training (a sweep's law, as in "
        "experts-for-a-training-budget) or its score on your own tasks."
    )


def _changes_answers(path: str) -> bool:
    short = path.split(".", 2)[2] if path.startswith("systems.") and path.count(".") >= 2 else path
    return short == "model" or short.startswith("model.") or short in _FORMATS
