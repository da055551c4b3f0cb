"""Predictions against measured runs: tables of serving runs, published single cases, and fits of a stack's few parameters."""
