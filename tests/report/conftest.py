from __future__ import annotations

from pathlib import Path

import pytest
from report_sample import sample_result, sample_timeline

from moesim.report import write_report
from moesim.study.results import RunResult
from moesim.timeline import Timeline


@pytest.fixture(scope="session")
def result() -> RunResult:
    return sample_result()


@pytest.fixture(scope="session")
def timeline() -> Timeline:
    return sample_timeline(2)


@pytest.fixture(scope="session")
def report_dir(result: RunResult, timeline: Timeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report that tests read and do not touch."""
    out = tmp_path_factory.mktemp("report") / "out"
    write_report(result, out, timeline)
    return out
