"""Merges settings of several sources, each in the present schema, in the published one or in both.

A later source wins, whichever schema it is written in. A published key stays in force until a later source sets the
same thing: naming another part drops the arguments of the part before it, but no published key. Within one source
there is no order; a published key and a present one that contradict each other there are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ovenet.config import compat
from ovenet.config.compat import KEYWORDS, MULT, TARGETS, TRANSLATED, Setting
from ovenet.errors import UserError
from ovenet.models.settings import NO_SEED, PARTS

PART_SECTIONS = tuple(f"MODEL.{part.upper()}" for part in PARTS)
_BACKBONE, _STAGES = "MODEL.BACKBONE.NAME", "MODEL.BACKBONE.STAGES"
_PRETRAINED = "MODEL.BACKBONE.PRETRAINED"
_COPIES = "MODEL.SEED.STAGES"


class SettingsMerger:
    """Merges sources, added one after the other.

    Args:
        default_names: names of the default parts, by present key.
    """

    def __init__(self, default_names: Mapping[str, str]):
        self._settings: dict[str, Setting] = {key: (name, "") for key, name in default_names.items()}
        self._published: dict[str, Setting] = {}  # in force
        self._age: dict[str, int] = {}  # number of the last source that set a key
        self._num_sources = 0
        self._is_backbone_named = False
        self._ignored: dict[str, Setting] = {}  # reason and source of keys without effect

    def add(self, content: Mapping[str, Setting]) -> None:
        """Adds a source's settings.

        Raises:
            UserError: they contradict each other, or what was named before.
        """
        self._num_sources += 1
        self._age |= dict.fromkeys(content, self._num_sources)
        published = {key: setting for key, setting in content.items() if key in TRANSLATED}
        own = {key: setting for key, setting in content.items() if key not in published}
        for key, (setting, old) in compat.named_parts(published).items():
            if key in own:
                _require_agreement(old, published[old], key, own[key][0], setting[0])
            self._age[key] = self._num_sources
            own[key] = setting
        self._take(own)
        self._published |= published
        if any(compat.is_stage(key, "") for key in published):
            self._change_stages(published, own)

    def finish(self) -> tuple[dict[str, Setting], dict[str, Setting]]:
        """Translates the published keys.

        Returns:
            All settings in the present schema by key, the default names of parts with the source ""; and the published
            keys without effect, each with the reason and its source.

        Raises:
            UserError: a source contradicts itself.
        """
        head, seed = (self._settings[f"MODEL.{part}.NAME"][0] for part in ("HEAD", "SEED"))
        for old, target in TARGETS.items():
            if old not in self._published:
                continue
            value, source = self._published[old]
            reason = compat.why_without_effect(old, value, head, seed)
            if reason is None:
                self._settle(old, target, compat.present_value(old, value, source))
            elif reason:
                self._ignored[old] = (reason, source)
        self._settle_copies(seed)
        self._settle_learning_rates(head, seed)
        if _PRETRAINED in self._settings:
            self._ignored.pop(_PRETRAINED, None)
        return self._settings, self._ignored

    @property
    def published(self) -> Mapping[str, Setting]:
        """The published keys that are in force."""
        return self._published

    def _take(self, own: Mapping[str, Setting]) -> None:
        """Takes present settings: a part of another name starts without arguments; None removes an argument."""
        stages = self._stage_keys("") + self._stage_keys("_2")
        replaces = bool({_BACKBONE, _STAGES} & own.keys())
        before = compat.stage_specs(self._settings) if replaces and stages else None
        weights = self._settings.get(_PRETRAINED)
        for part in PART_SECTIONS:
            name = f"{part}.NAME"
            if name in own and own[name][0] != self._settings[name][0]:
                self._settings = {k: v for k, v in self._settings.items() if not k.startswith(f"{part}.")}
        self._settings |= own
        if weights and weights[0] and _PRETRAINED not in self._settings:
            self._ignored[_PRETRAINED] = (f"{_BACKBONE} names another network; name its weights too", weights[1])
        for key in [key for key, (value, _) in own.items() if value is None and is_argument(key)]:
            del self._settings[key]
        if not replaces or (stages and compat.stage_specs(self._settings) == before):
            return
        self._is_backbone_named = True
        for key in stages:
            _, source = self._published.pop(key)
            if compat.is_stage(key, "_2"):
                self._ignored[key] = (f"{_BACKBONE} names another network; its own stages are copied", source)

    def _stage_keys(self, suffix: str) -> list[str]:
        return [key for key in self._published if compat.is_stage(key, suffix)]

    def _change_stages(self, published: Mapping[str, Setting], own: Mapping[str, Setting]) -> None:
        """Changes the stages of the backbone as a source says; its other settings stay."""
        keys = [key for key in published if compat.is_stage(key, "")]
        before, (name, _) = compat.stage_specs(self._settings), self._settings[_BACKBONE]
        _, source = published[keys[0]]
        if before is None:
            raise _contradiction(keys[0], published[keys[0]], _BACKBONE, name, "which is not an HRNet")
        if _STAGES in own or (_BACKBONE in own and name != "hrnet"):
            for key in keys:
                if compat.changed_stages({key: published[key]}, before) != before:
                    raise _contradiction(key, published[key], _BACKBONE, name, "which has other stages")
        variant, stages = compat.backbone_of(compat.changed_stages(self._published, before))
        self._settings[_BACKBONE] = (variant, source)
        self._settings.pop(_STAGES, None)
        if stages is not None:
            self._settings[_STAGES] = (stages, source)

    def _settle(self, old: str, target: str, value: Any) -> None:
        """Sets the present key that a published one translates to, unless a later source has set it."""
        age, own_age = self._age[old], self._age.get(target, 0)
        if own_age > age:
            return
        if own_age == age and target in self._settings:
            _require_agreement(old, self._published[old], target, self._settings[target][0], value)
        self._settings[target] = (value, self._published[old][1])

    def _copies(self) -> list[dict[str, Any]] | None:
        """Stages of the offset branch by published keys; None for the usual ones, or without an offset branch."""
        specs, first = compat.stage_specs(self._settings), self._first_copy
        if specs is None or self._settings["MODEL.SEED.NAME"][0] != "fork" or first not in (2, 3, 4):
            return None
        so_far = self._settings.get(_COPIES, ((), ""))[0]
        of_w48 = bool(self._stage_keys("")) and not self._is_backbone_named and not so_far
        return compat.copied_stages(self._published, specs, first, so_far=so_far, of_w48=of_w48)

    @property
    def _first_copy(self) -> Any:
        return self._settings.get("MODEL.SEED.STAGE", (4, ""))[0]

    def _settle_copies(self, seed: str) -> None:
        for key in self._stage_keys("_2"):
            if seed != "fork":
                reason = "the model has no seed" if seed == NO_SEED else f"the seed is {seed}"
            elif compat.stage_specs(self._settings) is None:
                reason = f"the backbone is {self._settings[_BACKBONE][0]}"
            elif self._first_copy in (3, 4) and compat.stage_number(key) < self._first_copy:
                reason = f"stages are copied from {self._first_copy} on"
            else:
                continue
            self._ignored[key] = (reason, self._published.pop(key)[1])
        keys = self._stage_keys("_2") or self._stage_keys("")
        own_age = self._age.get(_COPIES, 0)
        newest = max(keys, key=self._age.__getitem__, default=None)
        if newest is None or own_age > self._age[newest] or (own_age and not compat.is_stage(newest, "_2")):
            return
        copies = self._copies()
        if own_age == self._age[newest] and _COPIES in self._settings:
            own = self._settings[_COPIES][0]
            if copies != own:
                raise _contradiction(newest, self._published[newest], _COPIES, own, "which are other stages")
        self._settings.pop(_COPIES, None)
        if copies is not None:
            self._settings[_COPIES] = (copies, self._published[newest][1])

    def _settle_learning_rates(self, head: str, seed: str) -> None:
        words, source = self._published.get(KEYWORDS, ([], ""))
        if not words:
            if MULT in self._published:
                self._ignored[MULT] = (f"{KEYWORDS} is empty", self._published[MULT][1])
            return
        factor = self._published.get(MULT, (TRANSLATED[MULT], ""))[0]
        try:
            factors = compat.learning_rate_factors(words, factor, head, seed)
        except UserError as error:
            raise UserError(f"{source}: {error}") from None
        if not factors:
            self._ignored |= {
                key: (f"no parameter of the head {head} has such a name", self._published[key][1])
                for key in (KEYWORDS, MULT)
                if key in self._published
            }
        newest = max((key for key in (KEYWORDS, MULT) if key in self._published), key=self._age.__getitem__)
        for target, value in factors.items():
            self._settle(newest, target, value)


def is_argument(key: str) -> bool:
    """Whether a key is in the section of a part, whose signature decides which arguments it takes."""
    section, _, name = key.rpartition(".")
    return section in PART_SECTIONS and name.isidentifier()


def _require_agreement(old: str, setting: Setting, key: str, value: Any, meant: Any) -> None:
    """Refuses a source in which a published key and the present one it translates to differ."""
    if value != meant:
        raise _contradiction(old, setting, key, value)


def _contradiction(old: str, setting: Setting, key: str, value: Any, why: str = "") -> UserError:
    published, source = setting
    why = f", {why}" if why else ""
    return UserError(f"{source}: {old} is {published!r}, but {key} is {value!r}{why}; leave one of them away")
