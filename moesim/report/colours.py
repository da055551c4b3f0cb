"""Colours by role, for light and dark, as CSS variables.

matplotlib draws with stand-in hex codes; `moesim.report.svg` turns them into ``var(--name)``, so that one drawing follows the
reader's colour scheme. Hues start from the Okabe-Ito set (safe for the common colour-vision deficiencies), darkened for white
paper and lightened for black.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "GROUP_COLOUR",
    "N_SYSTEM_COLOURS",
    "WEIGHT_COLOUR",
    "css_variables",
    "stand_in",
    "system_colour",
    "variables",
]

#: name -> (light, dark)
_COLOURS: dict[str, tuple[str, str]] = {
    "ink": ("#1c2126", "#e6e9ec"),
    "soft": ("#59636e", "#9aa5b1"),
    "rule": ("#d5dae0", "#39424c"),
    "paper": ("#ffffff", "#14181d"),
    "panel": ("#f5f7f9", "#1d232a"),
    "alarm": ("#b3261e", "#ff8a80"),
    "good": ("#00714f", "#4fd1a1"),
    "s0": ("#0b63a5", "#62b3ee"),
    "s1": ("#c4500b", "#f5935a"),
    "s2": ("#00785a", "#3fc79d"),
    "s3": ("#9d4686", "#e39aca"),
    "s4": ("#8a6400", "#e8bd4f"),
    "s5": ("#4a5568", "#aab6c6"),
    "s6": ("#2a8a9e", "#7fd6e8"),
    "s7": ("#7a3b2e", "#d99a8b"),
    "g0": ("#3f7fb5", "#5a9fd6"),
    "g1": ("#d9772b", "#e08b4a"),
    "g2": ("#2f9273", "#45b08e"),
    "g3": ("#b565a0", "#c983b7"),
    "g4": ("#c9a227", "#d9b84f"),
    "g5": ("#7fb7dc", "#3b6f99"),
    "g6": ("#8a94a0", "#76828f"),
    "g7": ("#b9c1ca", "#505b67"),
    "g8": ("#5d6b2f", "#9fb05c"),
    "g9": ("#e3a6a1", "#8f5550"),
    "g10": ("#8c3b1f", "#a4502f"),
    "g11": ("#3b4450", "#c3ccd6"),
}
_INDEX = {name: i for i, name in enumerate(_COLOURS)}
N_SYSTEM_COLOURS = 8

#: Operator groups keep their colour in every figure.
GROUP_COLOUR = {
    "attention": "g0", "experts": "g1", "dense_ffn": "g10", "shared_experts": "g4", "communication": "g2", "router": "g3",
    "permute": "g9", "norm": "g7", "head": "g8", "embedding": "g5", "host": "g11", "other": "g6", "waiting": "alarm",
}  # fmt: skip

#: Kinds of memory.
WEIGHT_COLOUR = {
    "attention": "g0", "routed_experts": "g1", "dense_ffn": "g10", "shared_experts": "g4", "other weights": "g5",
    "KV cache": "g2", "activations": "g3", "communication buffers": "g8", "runtime reserve": "g7",
}  # fmt: skip


def stand_in(name: str) -> str:
    """The hex code that matplotlib draws with for a named colour."""
    return f"#a5{_INDEX[name]:02x}5e"


def variables() -> dict[str, str]:
    """Stand-in hex code to CSS variable."""
    return {stand_in(name): f"var(--{name})" for name in _COLOURS}


def css_variables(names: Sequence[str] | None = None) -> tuple[str, str]:
    """CSS declarations for light and for dark."""
    chosen = list(_COLOURS) if names is None else list(names)
    light = "".join(f"--{name}:{_COLOURS[name][0]};" for name in chosen)
    return light, "".join(f"--{name}:{_COLOURS[name][1]};" for name in chosen)


def system_colour(index: int) -> str:
    """The colour of the system at this place in the result, the same in every figure."""
    return f"s{index % N_SYSTEM_COLOURS}"
