"""moesim: where tokens really go in a Mixture-of-Experts model, and what that costs on real hardware.

The public names are found when they are asked for, so that ``import moesim`` loads nothing else. See docs/api.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moesim._version import __version__
    from moesim.errors import InputError, MoesimError
    from moesim.specs.catalog import load_hardware, load_model
    from moesim.study.api import check, estimate, fit, plan, profile, run, serve, sweep
    from moesim.study.plan.spec import PlanSpec

__all__ = [
    "InputError",
    "MoesimError",
    "PlanSpec",
    "__version__",
    "check",
    "estimate",
    "fit",
    "load_hardware",
    "load_model",
    "plan",
    "profile",
    "run",
    "serve",
    "sweep",
]

_HOMES = {
    "InputError": "moesim.errors",
    "MoesimError": "moesim.errors",
    "PlanSpec": "moesim.study.plan.spec",
    "__version__": "moesim._version",
    "load_hardware": "moesim.specs.catalog",
    "load_model": "moesim.specs.catalog",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'moesim' has no attribute {name!r}")
    from importlib import import_module

    found = getattr(import_module(_HOMES.get(name, "moesim.study.api")), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
