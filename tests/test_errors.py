"""One line a user can act on."""

from __future__ import annotations

import pytest

from moesim.errors import (
    CatalogError,
    ConservationError,
    InputError,
    MissingExtraError,
    MoesimError,
    ParallelError,
    TraceError,
    nearest,
)


def test_says_where_what_and_what_to_do() -> None:
    error = InputError("must be positive", "a.yaml", 7, "workload.input_tokens", -1, "1 or more", "try 1024")
    assert str(error) == "a.yaml:7: workload.input_tokens: must be positive (got -1; allowed: 1 or more); try 1024"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (InputError("is empty"), "is empty"),
        (InputError("is empty", file="a.yaml"), "a.yaml: is empty"),
        (InputError("is empty", line=3), "is empty"),  # a line without a file says nothing
        (InputError("is wrong", value=""), "is wrong (got '')"),
        (InputError("two\nlines\n here"), "two lines here"),
    ],
)
def test_leaves_out_what_is_not_known(error: InputError, text: str) -> None:
    assert str(error) == text


def test_long_values_are_cut() -> None:
    text = str(InputError("is wrong", value="x" * 500))
    assert len(text) < 120
    assert "..." in text


def test_at_fills_in_only_what_is_missing() -> None:
    error = InputError("is wrong", field="mine").at(file="a.yaml", line=2, field="other")
    assert (error.file, error.line, error.field) == ("a.yaml", 2, "mine")


@pytest.mark.parametrize("kind", [CatalogError, ParallelError, TraceError, InputError])
def test_user_errors_exit_with_2(kind: type[InputError]) -> None:
    assert kind("x").exit_code == 2
    assert isinstance(kind("x"), MoesimError)


def test_own_defects_exit_with_1() -> None:
    assert ConservationError("x").exit_code == 1
    assert not isinstance(ConservationError("x"), InputError)


def test_a_missing_extra_says_how_to_get_it() -> None:
    error = MissingExtraError("torch", "calibrate")
    assert error.exit_code == 2
    assert "pip install 'moesim[calibrate]'" in str(error)


def test_nearest_suggests_by_likeness_then_by_part() -> None:
    known = ["mixtral-8x7b", "llama-2-7b", "llama-3.1-8b"]
    assert list(nearest("mixtral", known)) == ["mixtral-8x7b"]
    assert nearest("LLAMA-2-7B", known)[0] == "llama-2-7b"
    assert list(nearest("zzz", known)) == []
    assert list(nearest("", known)) == []
    assert len(nearest("llama", known, n=1)) == 1
