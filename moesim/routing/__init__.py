"""Who goes where: router models, capacity, placement and replication, traces, paths."""

from moesim.routing.build import build_router
from moesim.routing.placement import Placement, contiguous, given, striped
from moesim.routing.router import RouterModel

__all__ = ["Placement", "RouterModel", "build_router", "contiguous", "given", "striped"]
