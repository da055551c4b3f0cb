"""Calibration: measured tables in, fitted forms with checked errors out."""
