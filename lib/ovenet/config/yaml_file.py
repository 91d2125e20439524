"""YAML files that hold a table, read safely: no repeated keys, no aliases that expand without end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ovenet.errors import UserError, one_line

MAX_VALUES = 100_000


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a table.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot read the config file: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not in UTF-8 (byte {error.start}); save the file as UTF-8") from error
    except ValueError as error:  # a NUL in the name
        raise UserError(f"{str(path)!r}: not a file name: {error}") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """The table in a text.

    Args:
        text: YAML.
        source: of the text, for messages.

    Raises:
        UserError: it is not YAML, or holds something else.
    """
    try:
        content = yaml.load(text, _Loader)
    except UserError as error:
        raise UserError(f"{source}, {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not a YAML file: {one_line(error, 300)}") from error
    except RecursionError:
        raise UserError(f"{source}: nested too deeply for a config file") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{source}: expected `KEY: value` lines, got a {type(content).__name__}")
    return content


class _Loader(yaml.SafeLoader):
    """Refuses a key that appears twice in a table, of which YAML takes the last, and aliases that repeat too much."""

    def __init__(self, text: str):
        super().__init__(text)
        self._num_values = 0
        self._sizes: dict[str, int] = {}  # number of values behind each anchor, known once it is complete

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Counts values as they are read, those behind an alias again each time, before anything is expanded."""
        event, before = self.peek_event(), self._num_values
        assert isinstance(event, yaml.NodeEvent)
        assert event.start_mark is not None
        line = event.start_mark.line + 1
        node = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._sizes:
                raise UserError(f"line {line}: *{event.anchor} stands inside &{event.anchor} itself, without end")
            self._num_values += self._sizes[event.anchor]
        else:
            self._num_values += 1
            if isinstance(node, yaml.MappingNode):
                _require_unique_keys(node)
            if event.anchor:
                self._sizes[event.anchor] = self._num_values - before
        if self._num_values > MAX_VALUES:
            raise UserError(f"line {line}: more than {MAX_VALUES} values, counting those behind aliases each time")
        return node


def _require_unique_keys(table: yaml.MappingNode) -> None:
    lines: dict[str, int] = {}
    for key, _ in table.value:
        if isinstance(key, yaml.ScalarNode):
            line = key.start_mark.line + 1
            if key.value in lines:
                raise UserError(
                    f"line {line}: {key.value} stands there a second time, after line {lines[key.value]}; join them"
                )
            lines[key.value] = line
