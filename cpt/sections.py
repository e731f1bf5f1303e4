"""Config sections: frozen dataclasses are the schema, `ConfigDict`s are what people write and override.

A dataclass says which fields a section has, their types and defaults. `section(cls, **given)` makes the `ConfigDict`
that a recipe holds: every field is in it (a `None` as a typed placeholder), so each is reachable from the command line.
`parse(cls, raw, where)` makes the frozen dataclass back and names field, value and nearest name when something is off.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from cpt.errors import ConfigError, nearest


def section(cls: type, **given: Any) -> ConfigDict:
    """The `ConfigDict` of the section `cls` with the defaults of its dataclass and the values `given`.

    Raises:
      ConfigError: `given` names a field that `cls` does not have.
    """
    cls = _variant(cls, given)
    names = _names(cls)
    for name in given:
        if name not in names:
            raise ConfigError(
                f"{cls.__name__}.{name}: no such field{nearest(name, names)}  (fields: {', '.join(names)})"
            )
    hints = typing.get_type_hints(cls)
    out = ConfigDict()
    for field in dataclasses.fields(cls):
        out[field.name] = _raw(hints[field.name], given.get(field.name, _default(field)))
    return out


def parse(cls: type, raw: Mapping[str, Any], where: str = "") -> Any:
    """The frozen dataclass `cls` from a (nested) mapping.

    Args:
      cls: a dataclass whose fields are scalars, tuples, mappings or further sections.
      raw: what the config holds; missing fields take the default.
      where: dotted path of this section, for errors.

    Raises:
      ConfigError: unknown field, wrong type, missing required field.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where}: expected a section with the fields {', '.join(_names(cls))}, got {raw!r}")
    cls = _variant(cls, raw, where)
    names, hints = _names(cls), typing.get_type_hints(cls)
    for key in raw:
        if key not in names:
            raise ConfigError(f"{_join(where, key)}: no such field{nearest(key, names)}  (fields: {', '.join(names)})")
    values = {}
    for field in dataclasses.fields(cls):
        path = _join(where, field.name)
        # A `ConfigDict` holds a None for what its recipe did not give.
        missing = raw.get(field.name) is None and not _optional(hints[field.name])[1]
        if missing and _default(field) is dataclasses.MISSING:
            raise ConfigError(f"{path}: required, but not given")
        if field.name in raw:
            values[field.name] = _convert(hints[field.name], raw[field.name], path)
    return cls(**values)


def to_dict(value: Any, defaults: bool = True) -> Any:
    """Plain JSON-able data of a (nested) section; the inverse of `parse`.

    Args:
      defaults: also the fields that have their default value.
    """
    if dataclasses.is_dataclass(value):
        named = {f.name: (getattr(value, f.name), _default(f)) for f in dataclasses.fields(value)}
        return {name: to_dict(v, defaults) for name, (v, default) in named.items() if defaults or v != default}
    if isinstance(value, Mapping):
        return {str(k): to_dict(v, defaults) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_dict(v, defaults) for v in value]
    return value


def _variant(cls: type, raw: Mapping[str, Any], where: str = "") -> type:
    """The dataclass of a section: `cls` itself, or what its `variant` picks by what is written in the section."""
    pick = getattr(cls, "variant", None)
    return cls if pick is None else pick(raw, where)


def _names(cls: type) -> list[str]:
    return [f.name for f in dataclasses.fields(cls)]


def _default(field: dataclasses.Field) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else str(name)


def _optional(hint: Any, value: Any = None) -> tuple[Any, bool]:
    """`(T, True)` for `T | None`, else `(hint, False)`. Of `T | Mapping | None` the part that `value` is meant for."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = [a for a in typing.get_args(hint) if a is not type(None)]
        fits = [a for a in inner if (typing.get_origin(a) is Mapping) == isinstance(value, Mapping)]
        return (fits or inner)[0], len(inner) < len(typing.get_args(hint))
    return hint, False


def _raw(hint: Any, value: Any) -> Any:
    """The form in which a field of type `hint` lies in a `ConfigDict`."""
    inner, optional = _optional(hint, value)
    if dataclasses.is_dataclass(inner):
        if dataclasses.is_dataclass(value):
            value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        # A copy: a section used twice in a recipe must not be one object, or overriding one place changes the other.
        given = {} if value is dataclasses.MISSING or value is None else value
        return copy.deepcopy(given) if isinstance(given, ConfigDict) else section(inner, **given)
    if value is dataclasses.MISSING or value is None:
        if typing.get_origin(inner) is not None and optional is False:
            return ConfigDict()
        return config_dict.placeholder(inner if isinstance(inner, type) and inner is not Any else object)
    if isinstance(value, Mapping):
        item = (typing.get_args(inner) or (Any, Any))[1]
        return ConfigDict({k: _raw(item, v) for k, v in value.items()})
    return tuple(value) if isinstance(value, list | tuple) else value


def _convert(hint: Any, value: Any, where: str) -> Any:
    inner, optional = _optional(hint, value)
    if value is None and optional:
        return None
    if dataclasses.is_dataclass(inner):
        parsed = parse(inner, value, where)
        # An optional section whose every field is None was not given.
        return None if optional and all(getattr(parsed, n) is None for n in _names(inner)) else parsed
    origin, args = typing.get_origin(inner), typing.get_args(inner)
    if inner is dict or inner is Mapping or (isinstance(origin, type) and issubclass(origin, Mapping)):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected named entries, got {value!r}")
        item = args[1] if args else Any
        return {str(k): _convert(item, v, _join(where, k)) for k, v in value.items()}
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: expected a tuple, got {value!r}")
        return tuple(_convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is typing.Literal:
        if value not in args:
            offered = ", ".join(map(repr, args))
            raise ConfigError(
                f"{where}: {value!r} is not allowed{nearest(str(value), map(str, args))}  (one of: {offered})"
            )
        return value
    return value if inner is Any else _scalar(inner, value, where)


def _scalar(kind: type, value: Any, where: str) -> Any:
    """Numbers may be written either way where nothing is lost (`300e9` tokens, share `0`); nothing else is cast."""
    if isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value):
        if kind is float:
            return float(value)
        if kind is int and math.isfinite(value) and value == int(value):
            return int(value)
    if kind in (str, bool) and isinstance(value, kind):
        return value
    raise ConfigError(f"{where}: expected {kind.__name__}, got {type(value).__name__} {value!r}")
