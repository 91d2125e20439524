"""The reference page of all settings: ``python -m ovenet.config.reference > docs/settings.md``."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from itertools import groupby

from ovenet.config.schema import KEYS, SECTIONS
from ovenet.fields import settings_of
from ovenet.models.settings import PARTS

_INTRODUCTION = """# Settings

Every key of an experiment file. Values come, later ones winning, from the defaults below, the files that `_BASE_`
names, the file itself, and `KEY VALUE` pairs on the command line. This page is written from the code by
`python -m ovenet.config.reference > docs/settings.md`; `ovenet config --cfg FILE` prints the settings of an
experiment with the file that each comes from.

The last column says what a setting changes: the **result** of a training, an **input** file that the result depends
on, the **place** of files on this machine, or the **speed**: time, memory, logs and checkpoints, never a result.
`sweep` and `compare --seeds` take runs that differ in places and speed alone, or in `SEED`, for the same; a packed
model carries neither places nor inputs."""


def settings_page() -> str:
    """The page, in Markdown."""
    return "\n".join([_INTRODUCTION, *_tables(), ""])


def _tables() -> Iterator[str]:
    for prefix, group in groupby(SECTIONS, key=lambda section: section[0]):
        components = [component for _, component in group]
        yield f"\n## {prefix or 'The run'}\n"
        yield " ".join(component.__doc__.splitlines()[0] for component in components if component.__doc__)
        if prefix in [f"MODEL.{part.upper()}" for part in PARTS]:
            kind = prefix.rpartition(".")[2].lower()
            yield (
                f"\nFurther keys of this section are arguments of the part that `NAME` names: "
                f"`ovenet models`, or `help(ovenet.describe({kind!r}, NAME))`."
            )
        yield "\n| key | default | meaning | values | changes |\n|---|---|---|---|---|"
        for component in components:
            for name, (_, setting) in settings_of(component).items():
                key = KEYS[f"{prefix}.{name}" if prefix else name]
                meaning = escape(setting.meaning, quote=False).replace("|", "\\|")
                values = setting.range_text.removeprefix("one of ")
                yield f"| `{key.name}` | `{key.default!r}` | {meaning} | {values} | {setting.role} |"


if __name__ == "__main__":
    print(settings_page(), end="")
