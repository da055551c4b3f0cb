"""What is shipped loads quickly: the parsed copy beside each calibration is of the very text that people read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2] / "hardware" / "calibrations"
FILES = sorted(path for path in ROOT.glob("*/*.yaml") if path.with_suffix(".npz").is_file())


def test_the_devices_that_were_promised_are_shipped() -> None:
    devices = {path.parent.name for path in FILES}
    assert devices >= {"h100_sxm", "h200_sxm", "b200_sxm", "a100_sxm", "l40s", "rtx_pro_6000"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_the_parsed_copy_is_current(path: Path) -> None:
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as stored:
        copy = json.loads(stored["parsed"].tobytes())
    assert copy["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest(), "save it again with save_calibration"
    assert copy["file"]["device"] == path.parent.name
