"""Parts by name, and their settings checked against their own signatures."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any, Generic, TypeVar, get_type_hints

from ovenet.conversion import convert, described
from ovenet.errors import UserError, nearest

Builder = Callable[..., Any]
B = TypeVar("B", bound=Builder)


class Registry(Generic[B]):
    """Builders of one kind of part, by name: classes, or functions.

    Args:
        kind: for messages.
        modules: imported before a name is looked up; they register the parts of this package.
        provided: arguments of builders that are no settings, as the program sets them itself.
        fallback: gives a builder for a name that is not registered, or None.
    """

    def __init__(
        self,
        kind: str,
        modules: Sequence[str] = (),
        provided: Sequence[str] = (),
        fallback: Callable[[str], B | None] = lambda name: None,
    ):
        self.kind = kind
        self._modules, self._provided, self._fallback = modules, provided, fallback
        self._builders: dict[str, B] = {}

    def register(self, name: str) -> Callable[[B], B]:
        """Decorates a class or function that builds the part; its arguments are the part's settings."""

        def add(builder: B) -> B:
            assert name not in self._builders, f"two {self.kind}s are called {name}"
            self._builders[name] = builder
            return builder

        return add

    def names(self) -> list[str]:
        """All registered names."""
        return sorted(self._registered())

    def __getitem__(self, name: str) -> B:
        registered = self._registered()
        builder = registered.get(name) or self._fallback(name)
        if builder is None:
            raise UserError(f"there is no {self.kind} {name!r}; the nearest are {nearest(name, registered, num=3)}")
        return builder

    def takes(self, name: str, argument: str) -> bool:
        """Whether a part's builder has an argument."""
        return argument in _arguments(self[name])

    def check(self, name: str, settings: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Converts settings to the types in the part's signature.

        Args:
            name: of the part.
            settings: by argument name, in any case.
            where: section of the settings, for messages: ``MODEL.HEAD``.

        Raises:
            UserError: the part does not exist, or an argument is unknown, missing or of another type.
        """
        builder = self[name]
        parameters = {k: p for k, p in _arguments(builder).items() if k not in self._provided}
        hints = _type_hints(builder)
        checked = {}
        for key, value in settings.items():
            argument = key.lower()
            if argument not in parameters:
                has = f"did you mean {nearest(argument, parameters).upper()}?" if parameters else "it has none"
                raise UserError(f"{where}.{key}: the {self.kind} {name} has no such argument; {has}")
            hint = hints.get(argument, Any)
            try:
                checked[argument] = convert(value, hint)
            except TypeError:
                raise UserError(f"{where}.{key} is {value!r}; expected {described(hint)}") from None
        for argument, parameter in parameters.items():
            if parameter.default is inspect.Parameter.empty and argument not in checked:
                raise UserError(f"{where}.{argument.upper()} is not set; the {self.kind} {name} needs it")
        return checked

    def _registered(self) -> Mapping[str, B]:
        for module in self._modules:
            import_module(module)
        return self._builders


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
