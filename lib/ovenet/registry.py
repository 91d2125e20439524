"""Parts by name, and their settings checked against their own signatures."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ovenet.errors import UserError, nearest

Builder = Callable[..., Any]


class Registry:
    """Builders of one kind of part, by name.

    Args:
        kind: for messages.
        fallback: gives a builder for names that are not registered, or None.
    """

    def __init__(self, kind: str, fallback: Callable[[str], Builder | None] = lambda name: None):
        self.kind = kind
        self._fallback = fallback
        self._builders: dict[str, Builder] = {}

    def register(self, name: str) -> Callable[[Builder], Builder]:
        """Decorates a class or function that builds the part; its arguments are the part's settings."""

        def add(builder: Builder) -> Builder:
            assert name not in self._builders, f"two {self.kind}s are called {name}"
            self._builders[name] = builder
            return builder

        return add

    def names(self) -> list[str]:
        """All registered names."""
        return sorted(self._builders)

    def __getitem__(self, name: str) -> Builder:
        builder = self._builders.get(name) or self._fallback(name)
        if builder is None:
            raise UserError(f"there is no {self.kind} {name!r}; the nearest are {nearest(name, self._builders, num=3)}")
        return builder

    def takes(self, name: str, argument: str) -> bool:
        """Whether a part's builder has an argument."""
        return argument in _arguments(self[name])

    def check(self, name: str, settings: Mapping[str, Any], provided: Sequence[str], where: str) -> dict[str, Any]:
        """Converts settings to the types in the part's signature.

        Args:
            name: of the part.
            settings: by argument name, in any case.
            provided: arguments that the program gives itself.
            where: what the settings are called, for messages: ``MODEL.HEAD``.

        Raises:
            UserError: no such part, an argument that it does not have, lacks, or of another type.
        """
        builder = self[name]
        parameters = {k: p for k, p in _arguments(builder).items() if k not in provided}
        hints = _type_hints(builder)
        checked = {}
        for key, value in settings.items():
            argument = key.lower()
            shown = f"{where}.{key}"
            if argument not in parameters:
                has = f"did you mean {nearest(argument, parameters).upper()}?" if parameters else "it has none"
                raise UserError(f"{shown}: the {self.kind} {name} has no such argument; {has}")
            checked[argument] = _converted(value, hints.get(argument, Any), shown)
        for argument, parameter in parameters.items():
            if parameter.default is inspect.Parameter.empty and argument not in checked:
                raise UserError(f"{where}.{argument.upper()} is not set; the {self.kind} {name} needs it")
        return checked


def _initializers(cls: type) -> list[Callable[..., None]]:
    """A class's own ``__init__`` and those that it hands further keywords on to."""
    found: list[Callable[..., None]] = []
    for base in cls.__mro__:
        if "__init__" in vars(base):
            found.append(vars(base)["__init__"])
            if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(found[-1]).parameters.values()):
                break
    return found


@lru_cache
def _arguments(builder: Builder) -> dict[str, inspect.Parameter]:
    """Arguments of a builder. ``**options`` of a class are the keyword arguments of its base class."""
    own = dict(inspect.signature(builder).parameters)
    if not inspect.isclass(builder):
        return own
    _, *inherited = _initializers(builder)
    named = {k: p for k, p in own.items() if p.kind is not p.VAR_KEYWORD}
    for initializer in inherited:
        for name, parameter in inspect.signature(initializer).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY:
                named.setdefault(name, parameter)
    return named


@lru_cache
def _type_hints(builder: Builder) -> dict[str, Any]:
    function = getattr(builder, "func", builder)  # of a partial
    if not inspect.isclass(function):
        return get_type_hints(function)
    return {k: v for f in reversed(_initializers(function)) for k, v in get_type_hints(f).items()}


def _converted(value: Any, hint: Any, shown: str) -> Any:
    try:
        return _convert(value, hint)
    except TypeError:
        raise UserError(f"{shown} is {value!r}; expected {_described(hint)}") from None


def _convert(value: Any, hint: Any) -> Any:
    """The value converted to the type, if nothing is lost.

    Raises:
        TypeError: it does not fit.
    """
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Literal:
        if value in args:
            return value
    elif origin in (Union, UnionType):
        for option in args:
            try:
                return _convert(value, option)
            except TypeError:
                continue
    elif origin in (tuple, Sequence):
        if isinstance(value, (list, tuple)):
            if origin is tuple and args[-1] is not Ellipsis:
                if len(args) == len(value):
                    return tuple(_convert(v, a) for v, a in zip(value, args, strict=True))
            else:
                return tuple(_convert(v, args[0]) for v in value)
    elif origin is Mapping:
        if isinstance(value, Mapping):
            return dict(value)
    elif hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif hint is NoneType:
        if value is None:
            return None
    elif isinstance(value, hint) and isinstance(value, bool) == (hint is bool):
        return value
    raise TypeError


def _described(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (Union, UnionType):
        return " or ".join(_described(a) for a in args)
    if origin in (tuple, Sequence):
        return "a list of " + _described(args[0]).removeprefix("a ") + "s"
    names = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", NoneType: "nothing"}
    return names.get(hint, "a table of settings")
