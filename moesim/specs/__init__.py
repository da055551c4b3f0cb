"""Frozen descriptions of hardware, models, parallelism, routing, workloads and scenarios, and how they are read."""
