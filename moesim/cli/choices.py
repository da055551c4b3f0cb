"""Words on the command line to values of the library, with one clear line for a word that is not known."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TypeVar

from pydantic import ValidationError

from moesim.errors import InputError, nearest
from moesim.specs.flow import FlowSpec
from moesim.specs.load import plain_words
from moesim.specs.routing import PlacementKind, PlacementSpec, RouterFamily, RoutingSpec

__all__ = ["choice", "routing_spec", "stragglers"]

Choice = TypeVar("Choice", bound=StrEnum)


def choice(kind: type[Choice], text: str, option: str) -> Choice:
    """The member of an enumeration that `text` names.

    Raises:
        InputError: no such member.
    """
    try:
        return kind(text)
    except ValueError:
        words = [member.value for member in kind]
        close = nearest(text, words)
        hint = f"did you mean {close[0]!r}?" if close else None
        raise InputError("not known", field=option, value=text, allowed=", ".join(words), hint=hint) from None


def stragglers(slow_ranks: Sequence[str], slow_links: Sequence[str]) -> FlowSpec:
    """``3:1.5`` each: a rank and the factor by which its compute, or its links, take longer.

    Raises:
        InputError: something else, or a factor below 1.
    """
    found = {}
    for option, texts in (("--slow-rank", slow_ranks), ("--slow-link", slow_links)):
        factors: dict[int, float] = {}
        for text in texts:
            rank, _, factor = text.partition(":")
            try:
                number, times = int(rank), float(factor)
            except ValueError:
                allowed = "such as 3:1.5"
                raise InputError("needs a rank and a factor", field=option, value=text, allowed=allowed) from None
            if number in factors:
                raise InputError("names a rank twice", field=option, value=text, allowed="each rank once")
            factors[number] = times
        try:
            name = "slow_ranks" if option == "--slow-rank" else "slow_links"
            found[name] = getattr(FlowSpec.model_validate({name: factors}), name)
        except ValidationError as error:
            raise InputError(plain_words(error.errors()[0]["msg"]), field=option, value=" ".join(texts)) from None
    return FlowSpec(**found)


def routing_spec(text: str, redundant_experts: int = 0) -> RoutingSpec:
    """``uniform``, ``zipf:0.8``, ``preset:olmoe-1b-7b`` or ``trace:FILE`` as a router.

    Raises:
        InputError: a family that is not known, or a number that is not one.
    """
    word, _, rest = text.partition(":")
    family = choice(RouterFamily, word, "--routing")
    fields: dict[str, object] = {"family": family}
    if family in (RouterFamily.ZIPF, RouterFamily.LOGNORMAL, RouterFamily.DIRICHLET):
        try:
            fields["skew"] = float(rest)
        except ValueError:
            raise InputError(
                "needs a number after the colon", field="--routing", value=text, allowed=f"{word}:0.8"
            ) from None
    elif family in (RouterFamily.PRESET, RouterFamily.TRACE):
        if not rest:
            raise InputError("needs a name after the colon", field="--routing", value=text, allowed=f"{word}:NAME")
        fields[family.value] = rest
    elif family is RouterFamily.POPULARITY or rest:
        raise InputError(
            "takes no value here", field="--routing", value=text, allowed="a scenario file for popularity vectors"
        )
    if redundant_experts:
        fields["placement"] = PlacementSpec(kind=PlacementKind.EPLB)
    try:
        return RoutingSpec.model_validate(fields)
    except ValidationError as error:
        raise InputError(plain_words(error.errors()[0]["msg"]), field="--routing", value=text) from None
