"""The UNet as a run calls it: several texts at once, each read once, and the shortcuts of a run.

Shapes: B images, R rows of a call (B for each text), C channels, h w latent grid, T text tokens,
D text width, H heads, N image tokens, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from sdcore.attention import Attend, Control, FrozenText, KnownText, Site, call_control
from sdcore.control.run_control import attention_sites
from sdcore.diffusion.guidance import Guidance
from sdcore.diffusion.shortcuts import OUTER, Shortcuts
from sdcore.diffusion.steps import Step
from sdcore.unet.unet import AddedConditions, DeepFeatures

if TYPE_CHECKING:
    from sdcore.unet.unet import UNet

NO_SHORTCUTS = Shortcuts()
KEPT = 2  # calls whose texts are known at a time: with the negative prompt, and without it


@dataclass(frozen=True)
class Conditioning:
    """What the UNet is told about each image: text (B, T, D), and SDXL's added conditions."""

    text: Tensor
    added: AddedConditions | None = None


class RunCall:
    """The UNet of one run: what one step leaves for the next.

    It belongs to the run; the UNet keeps nothing. What its layers make of a text is the same at
    every step, and is read once, in the rows of its call, so that the numbers are those of reading
    it at every step. What shortcuts leave is kept here, too.

    A call is for B images, with several texts of one length for each: latents (B, C, h, w) to rows
    (R, C, h, w), text by text.
    """

    def __init__(self, unet: UNet, shortcuts: Shortcuts = NO_SHORTCUTS) -> None:
        self.unet, self.shortcuts = unet, shortcuts
        # by the identity of conditionings, which are held here as long as it is used
        self._known: dict[tuple[int, ...], _Known] = {}
        self._deep: dict[tuple[int, ...], _Deep] = {}
        self._attended: dict[Site, list[Tensor]] = {}  # for each group of rows (B, H, N, d)
        self._frozen: FrozenText | None = None
        self._finest = _finest_level(unet) if shortcuts.coarse_keys > 1 else 0

    def __call__(
        self,
        latents: Tensor,
        time: Tensor,
        conditionings: Sequence[Conditioning],
        control: Control | None,
        told: float | None,
        step: Step | None = None,
    ) -> Tensor:
        """The UNet's answer.

        Args:
            control: sees all rows.
            told: the guidance scale, for a UNet that is told it.
            step: of the run; None takes no shortcut.
        """
        text, added, deep = None, _stack_added(conditionings), None
        if step is not None:
            if self.shortcuts.coarse_keys > 1:
                control = _CoarseKeys(self.shortcuts.coarse_keys, self._finest, control)
            if self.shortcuts.gated(step):
                text = self._frozen_text()
            elif self.shortcuts.reads_last(step):
                control = _Noting(self._attended, len(conditionings), control)
            deep = self._deep_features(step, conditionings)
        if text is None:
            text = self._known_text(conditionings)
        scale = {} if told is None else {"guidance_scale": told}
        return self.unet(latents, time, text, control, added=added, deep=deep, **scale)

    def guidance(self, step: Step, guidance: Guidance) -> Guidance:
        """The guidance of a step: none where the text is no longer read."""
        return Guidance(1.0) if self.shortcuts.gated(step) and guidance.active else guidance

    def _known_text(self, conditionings: Sequence[Conditioning]) -> KnownText:
        """The texts of a call as the layers know them."""
        key = tuple(map(id, conditionings))
        if key not in self._known:
            if len(self._known) == KEPT:
                del self._known[next(iter(self._known))]
            states = torch.cat([each.text for each in conditionings])  #  (R, T, D)
            with torch.no_grad():  # a control may look ahead with gradients, of latents alone
                self._known[key] = _Known(conditionings, self.unet.read(states))
        return self._known[key].text

    def _deep_features(
        self, step: Step, conditionings: Sequence[Conditioning]
    ) -> DeepFeatures | None:
        """What the deep layers gave to these rows, where this step may use it; or room for it."""
        if self.shortcuts.deepcache == 1:
            return None
        since, key = self.shortcuts.whole_since(step), tuple(map(id, conditionings))
        known = self._deep.get(key)
        if known is None or known.step < since or step.index == since:
            self._deep = {k: deep for k, deep in self._deep.items() if deep.step >= since}
            known = _Deep(conditionings, step.index, DeepFeatures(OUTER))
            self._deep[key] = known
        return known.features

    def _frozen_text(self) -> FrozenText:
        """The mean over all texts of what each layer read last."""
        if self._frozen is None:
            means = {site: torch.stack(each).mean(0) for site, each in self._attended.items()}
            self._frozen = self.unet.freeze(means)
        return self._frozen


class _Known(NamedTuple):
    conditionings: Sequence[Conditioning]
    text: KnownText


class _Deep(NamedTuple):
    conditionings: Sequence[Conditioning]
    step: int  # that ran whole
    features: DeepFeatures


@dataclass(frozen=True)
class _Noting:
    """Notes what attention to the text gives, for each group of rows; changes nothing."""

    attended: dict[Site, list[Tensor]]
    groups: int
    control: Control | None

    def __call__(
        self, site: Site, grid: tuple[int, int], q: Tensor, k: Tensor, v: Tensor, attend: Attend
    ) -> Tensor:
        out = _ask(self.control, site, grid, q, k, v, attend)
        if site.kind == "cross":
            self.attended.setdefault(site, []).extend(out.chunk(self.groups))
        return out


@dataclass(frozen=True)
class _CoarseKeys:
    """Lets places of one level read every `step`-th place across and down; see `Shortcuts`."""

    step: int
    level: int
    control: Control | None

    def __call__(
        self, site: Site, grid: tuple[int, int], q: Tensor, k: Tensor, v: Tensor, attend: Attend
    ) -> Tensor:
        if site.kind == "self" and site.level == self.level:
            attend = _CoarseAttend(attend, grid, self.step)
        return _ask(self.control, site, grid, q, k, v, attend)


@dataclass(frozen=True)
class _CoarseAttend:
    """A backend that gets some of the keys and values. Whoever has a mask, or keys of its own, gets
    attention to all of them."""

    attend: Attend
    grid: tuple[int, int]
    step: int

    @property
    def mask(self) -> Tensor | None:
        return self.attend.mask

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, **other: Tensor | None) -> Tensor:
        h, w = self.grid
        if k.shape[2] == h * w and other.get("mask", self.mask) is None:
            k, v = self._some(k), self._some(v)
        return self.attend(q, k, v, **other)

    def _some(self, x: Tensor) -> Tensor:
        places = torch.unflatten(x, 2, self.grid)  # (B, H, h, w, d)
        return places[:, :, :: self.step, :: self.step].flatten(2, 3)


def _ask(
    control: Control | None,
    site: Site,
    grid: tuple[int, int],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attend: Attend,
) -> Tensor:
    """What attention gives at a site, by way of the control where there is one."""
    if control is None:
        return attend(q, k, v)
    return call_control(control, site, grid, q, k, v, attend)


def _finest_level(unet: UNet) -> int:
    """The level of the finest grid on which places read one another."""
    levels = [site.level for site in attention_sites(unet) if site.kind == "self"]
    return min(levels, default=0)


def _stack_added(conditionings: Sequence[Conditioning]) -> AddedConditions | None:
    """SDXL's added conditions of several texts as one batch, text by text."""
    added = [each.added for each in conditionings if each.added is not None]
    if not added:
        return None
    assert len(added) == len(conditionings)
    pooled = torch.cat([each.pooled_text for each in added])
    return AddedConditions(pooled, torch.cat([each.time_ids for each in added]))
