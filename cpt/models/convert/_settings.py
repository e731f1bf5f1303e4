"""Reads a `config.json`: what is missing, of the wrong type, contradictory or not supported is one line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from cpt.errors import ConfigError

S = TypeVar("S")


class Settings:
    """Reads a `config.json` field by field; what is wrong is a ConfigError that names the file and the field."""

    def __init__(self, config: Mapping[str, Any], file: Path):
        self._config, self._file = config, file

    def count(self, name: str) -> int:
        """A whole number of at least 1 that has to be there."""
        value = self._config.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{self._file}: {name}: {value!r} must be a whole number of at least 1")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """True or False; `default` where there is none."""
        value = self._config.get(name)
        if value is not None and not isinstance(value, bool):
            raise ConfigError(f"{self._file}: {name}: {value!r} must be true or false")
        return default if value is None else value

    def number(self, name: str, default: float) -> float:
        """A number; `default` where there is none."""
        return self._number(name, self._config.get(name, default))

    def agreed(self, default: float, names: Mapping[str, Any]) -> float:
        """The one number that several fields give, by their names; None is a field that is not there.

        Raises:
          ConfigError: two of them differ, so that readers of one and of the other would build two models.
        """
        values = {name: self._number(name, v) for name, v in names.items() if v is not None}
        if len(set(values.values())) > 1:
            said = ", ".join(f"{name} {value:g}" for name, value in values.items())
            self.contradiction(said)
        return next(iter(values.values()), default)

    def contradiction(self, said: str) -> None:
        """Raises ConfigError: readers of one field and of another would build two models."""
        raise ConfigError(f"{self._file}: {said} contradict each other; remove the one that is not meant")

    def section(self, name: str) -> dict[str, Any]:
        """A nested object; empty where there is none."""
        value = self._config.get(name) or {}
        if not isinstance(value, dict):
            raise ConfigError(f"{self._file}: {name}: {value!r} must be an object")
        return value

    def unsupported(self, name: str, value: Any, what: str) -> None:
        """Raises ConfigError: a feature that the model here does not have."""
        raise ConfigError(f"{self._file}: {name}: {value!r} asks for {what}, which no model here has")

    def refuse(self, value: Any, name: str, allowed: tuple[Any, ...]) -> None:
        """Raises ConfigError where `value` is none of `allowed`: the model here would compute something else."""
        if value not in allowed:
            raise ConfigError(
                f"{self._file}: {name}: {value!r} is not supported  (supported: {', '.join(map(str, allowed))})"
            )

    def spec(self, kind: type[S], /, **fields: Any) -> S:
        """A spec, or a part of one, of these fields; what it finds wrong with them is said of the file."""
        try:
            return kind(**fields)
        except ConfigError as e:
            raise ConfigError(f"{self._file}: {str(e).removeprefix(f'{e.room}: ')}") from e

    def _number(self, name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{self._file}: {name}: {value!r} must be a number")
        return float(value)
