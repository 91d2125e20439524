"""Stages of HRNet as settings, and those of the published variants, without torch: config files are read with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ovenet.errors import UserError

NUM_STAGES = 4
MAX_TAIL_MODULES = {2: 1, 3: 3, 4: 2}  # of OVeNet's published copies, by stage
EXPANSIONS = {"BASIC": 1, "BOTTLENECK": 4}  # output channels of a residual block per channel of its width


@dataclass(frozen=True)
class StageSpec:
    """One stage: as many resolutions as there are entries in `num_blocks`.

    Attributes:
        num_modules: HR modules in a row.
        num_blocks: residual blocks per resolution in each unit.
        num_channels: width per resolution, before the block's expansion.
        block: ``BASIC`` or ``BOTTLENECK``.
    """

    num_modules: int
    num_blocks: tuple[int, ...]
    num_channels: tuple[int, ...]
    block: str = "BASIC"

    @classmethod
    def of(cls, settings: StageSpec | Mapping[str, Any], number: int) -> StageSpec:
        """From ``NUM_MODULES``, ``NUM_BLOCKS``, ``NUM_CHANNELS``, ``BLOCK`` of stage `number`, as configs have them.

        Raises:
            UserError: a setting is missing, unknown or of another type, or a list lacks an entry per resolution.
        """
        spec = settings if isinstance(settings, StageSpec) else _parse(settings, number)
        if spec.block not in EXPANSIONS:
            raise UserError(f"{_name(number)}: BLOCK is {spec.block!r}; expected BASIC or BOTTLENECK")
        if not len(spec.num_blocks) == len(spec.num_channels) == number:
            raise UserError(
                f"{_name(number)} needs {number} entries in NUM_BLOCKS and NUM_CHANNELS, one per resolution, got "
                f"{list(spec.num_blocks)} and {list(spec.num_channels)}"
            )
        return spec

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels that leave the stage, per resolution."""
        return tuple(c * EXPANSIONS[self.block] for c in self.num_channels)


def usual_copy(spec: StageSpec, number: int) -> StageSpec:
    """The second copy of stage `number` in an OVeNet: with at most as many HR modules as the published copies."""
    return replace(spec, num_modules=min(spec.num_modules, MAX_TAIL_MODULES[number]))


def _name(number: int) -> str:
    return f"stage {number} of HRNet"


def _parse(settings: Mapping[str, Any], number: int) -> StageSpec:
    values = {key.lower(): value for key, value in settings.items()}
    unknown = set(values) - {"num_modules", "num_blocks", "num_channels", "block"}
    missing = {"num_modules", "num_blocks", "num_channels"} - set(values)
    if unknown or missing:
        name = sorted(unknown or missing)[0].upper()
        raise UserError(f"{_name(number)}: {name} is {'no setting of it' if unknown else 'not set'}")
    lists = {k: tuple(values[k]) for k in ("num_blocks", "num_channels") if _is_list_of_counts(values[k])}
    if len(lists) < 2 or type(values["num_modules"]) is not int or values["num_modules"] < 1:
        raise UserError(
            f"{_name(number)} is {values}; expected integers above 0: one for NUM_MODULES, lists of {number} for "
            "NUM_BLOCKS and NUM_CHANNELS"
        )
    return StageSpec(values["num_modules"], **lists, block=values.get("block", "BASIC"))


def _is_list_of_counts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(type(v) is int and v > 0 for v in value)


def _stages(
    width: int, modules: tuple[int, int, int], num_blocks: int, first: tuple[int, int]
) -> tuple[StageSpec, ...]:
    """Stages of a published variant; `first` has the blocks and the width of stage 1."""
    widths = [width * 2**r for r in range(NUM_STAGES)]
    later = (
        StageSpec(m, (num_blocks,) * n, tuple(widths[:n]))
        for n, m in zip(range(2, NUM_STAGES + 1), modules, strict=True)
    )
    return (StageSpec(1, (first[0],), (first[1],), "BOTTLENECK"), *later)


VARIANTS: dict[str, tuple[StageSpec, ...]] = {
    "hrnet_w18_small_v1": _stages(16, (1, 1, 1), 2, (1, 32)),
    "hrnet_w18_small_v2": _stages(18, (1, 3, 2), 2, (2, 64)),
    **{f"hrnet_w{width}": _stages(width, (1, 4, 3), 4, (4, 64)) for width in (18, 32, 40, 48)},
}
