"""Measuring real PyTorch layers: the only part of moesim that imports torch.

`plan`, `partial` and `table` know no torch, so that a plan can be shown and a stopped run turned into a table without it. See
docs/profile.md.
"""
