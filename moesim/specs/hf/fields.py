"""Typed reading of a ``config.json``: every key that is read is remembered, so that what is left can be judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moesim.errors import InputError

__all__ = ["Fields"]

_REQUIRED: Any = object()

#: More than any size of a model; what is larger is a mistake that would only overflow later.
MAX_COUNT = 10**9


class Fields:
    """The keys of one (sub)config; `path` is its place in the file, such as ``text_config``.

    A key whose value is null counts as absent, as it does in `transformers`.
    """

    def __init__(self, data: Mapping[str, Any], path: str = "", outer: Mapping[str, Any] | None = None) -> None:
        self.data = data
        self.path = path
        self.outer: Mapping[str, Any] = outer or {}
        self.read: set[str] = set()

    def name(self, key: str) -> str:
        """The key as a user finds it in the file."""
        return f"{self.path}.{key}" if self.path else key

    def has(self, key: str) -> bool:
        """True if the key is there and not null; the key counts as read."""
        self.read.add(key)
        return self.data.get(key) is not None

    def any(self, key: str, default: Any = None) -> Any:
        """The value as it is."""
        return self.data[key] if self.has(key) else default

    def count(self, *keys: str, default: int | None = _REQUIRED, least: int = 1) -> int:
        """A whole number of at least `least` under the first of `keys` (the others are spellings of the same).

        Raises:
            InputError: missing without a default, not a whole number, too small, or two spellings that disagree.
        """
        found = {key: self.data[key] for key in keys if self.has(key)}
        if not found:
            if default is _REQUIRED or default is None:
                raise InputError("is missing", field=self.name(keys[0]), hint="not a config.json of this architecture?")
            return default
        key, value = next(iter(found.items()))
        if any(other != value for other in found.values()):
            raise InputError(f"disagrees with {' and '.join(found)}", field=self.name(key), value=value)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError("must be a whole number", field=self.name(key), value=value, allowed=f"{least} or more")
        if value > MAX_COUNT:
            raise InputError("is too large", field=self.name(key), value=value, allowed=f"{least}..{MAX_COUNT}")
        return value

    def optional_count(self, *keys: str, least: int = 1) -> int | None:
        """As `count`, None where absent."""
        return self.count(*keys, least=least) if any(self.has(key) for key in keys) else None

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false.

        Raises:
            InputError: any other value.
        """
        value = self.any(key, default)
        if not isinstance(value, bool):
            raise InputError("must be true or false", field=self.name(key), value=value)
        return value

    def text(self, key: str, default: str) -> str:
        """A text.

        Raises:
            InputError: any other value.
        """
        value = self.any(key, default)
        if not isinstance(value, str):
            raise InputError("must be text", field=self.name(key), value=value)
        return value

    def sequence(self, key: str, length: int | None = None) -> Sequence[Any] | None:
        """A list, of `length` entries where given; None where absent.

        Raises:
            InputError: not a list, or of another length.
        """
        value = self.any(key)
        if value is None:
            return None
        if not isinstance(value, list | tuple):
            raise InputError("must be a list", field=self.name(key), value=value)
        if length is not None and len(value) != length:
            allowed = f"{length} entries, one per layer"
            raise InputError("has the wrong length", field=self.name(key), value=len(value), allowed=allowed)
        return value

    def indices(self, key: str, n_layers: int) -> frozenset[int]:
        """A list of layer numbers from 0; empty where absent.

        Raises:
            InputError: an entry that is no layer.
        """
        value = self.sequence(key) or ()
        for index in value:
            if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < n_layers:
                raise InputError("names no layer", field=self.name(key), value=index, allowed=f"0..{n_layers - 1}")
        return frozenset(value)

    def kinds(self, key: str, n_layers: int, allowed: Mapping[Any, Any]) -> list[Any] | None:
        """One entry per layer, translated by `allowed`; None where absent.

        Raises:
            InputError: an entry that `allowed` does not have, or a wrong length.
        """
        value = self.sequence(key, n_layers)
        if value is None:
            return None
        for entry in value:
            if isinstance(entry, list | dict) or entry not in allowed:
                known = ", ".join(str(k) for k in allowed)
                raise InputError(
                    "has an entry that is not understood", field=self.name(key), value=entry, allowed=known
                )
        return [allowed[entry] for entry in value]

    def sub(self, key: str) -> Fields:
        """A nested object; empty where absent.

        Raises:
            InputError: not an object.
        """
        value = self.any(key, {})
        if not isinstance(value, Mapping):
            raise InputError("must be an object", field=self.name(key), value=value)
        return Fields(value, self.name(key))

    def inherited(self, key: str, default: Any = None) -> Any:
        """The value here, or in the config around this one."""
        if self.has(key):
            return self.data[key]
        value = self.outer.get(key)
        return default if value is None else value

    def refuse(self, key: str, problem: str, hint: str | None = None) -> InputError:
        """The error for a key that this importer does not model."""
        return InputError(problem, field=self.name(key), value=self.data.get(key), hint=hint)
