"""Requests across passes: arrivals, queues, schedulers, KV blocks, replicas, and the metrics that users feel."""

from __future__ import annotations
