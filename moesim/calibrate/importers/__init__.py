"""Readers of measured tables from elsewhere, each into the one tidy schema of `moesim.calibrate.tables`."""
