"""Emoji scenes: one object or two, of a style, size and place, on a background, and a caption.

A scene is a function of (settings, seed, index): order of workers, restarts and machines change
nothing. Its ground truth (which object where, which colours) comes with it, so that what a model
paints can be measured against what the caption asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from train.emoji.data.captions import Captions
from train.emoji.data.colors import recolor
from train.emoji.data.drawings import load
from train.emoji.data.layout import (
    PLACES,
    RELATIONS,
    SIZES,
    Drawn,
    Scene,
    box_at,
    box_beside,
)
from train.emoji.data.own_scenes import OwnScenes
from train.emoji.data.settings import DataSettings


class Scenes:
    """All scenes of one set of settings.

    `held_out=False` never shows a held-out (style, concept) pair or two-object combination;
    `held_out=True` shows only those. Pictures are put together on `device`. A share of the scenes,
    `own_words`, is what newcomers ask for (own_scenes.py); it is none of those of one stage.
    """

    def __init__(
        self,
        settings: DataSettings,
        held_out: bool = False,
        device: torch.device | str = "cpu",
        own_words: float = 0.0,
    ) -> None:
        self.settings, self.device = settings, torch.device(device)
        self._drawings = load(settings)
        self._layers: dict[tuple[str, str, str, int], tuple[Tensor, Tensor]] = {}
        kept_back = settings.held_out_pairs()
        self._pairs = [pair for pair in self._drawings if (pair in kept_back) == held_out]
        self._combinations = {frozenset(pair) for pair in settings.held_out_combinations}
        self._held_out = held_out
        self.own_words = own_words
        # Newcomers' plurals mean several things, those of the grammar one.
        grammar = settings.model_copy(update={"plural_share": 0.0}) if own_words else settings
        self._captions = Captions(grammar)
        self._own = OwnScenes(settings, self._drawings, self._pairs) if own_words else None

    def scene(self, seed: int, index: int, stage: int | None = None) -> Scene:
        """The scene number `index` of the series `seed`, without its picture.

        Scenes of one `stage` share background, size, place and number of objects, so that only
        what is drawn tells them apart.
        """
        random = np.random.default_rng((seed, index))
        setting = random if stage is None else np.random.default_rng((seed, 1 << 40, stage))
        if self._own is not None and stage is None and random.random() < self.own_words:
            return self._own.compose(random)
        two = setting.random() < self.settings.two_objects_share
        return (self._two_objects if two else self._one_object)(random, setting)

    def images(self, scenes: Sequence[Scene], side: int | None = None) -> Tensor:
        """Pictures as the autoencoder reads them: (B, 3, H, W), float32, in [-1, 1].

        side: of the pictures, a multiple of `image_size`, in which the scenes are enlarged.
        """
        return self._paint(scenes, side or self.settings.image_size) / 127.5 - 1

    def picture(self, scene: Scene, side: int | None = None) -> np.ndarray:
        """Scene -> RGB picture (side, side, 3), uint8; `side` as for `images`."""
        painted = self._paint([scene], side or self.settings.image_size)[0]
        return painted.permute(1, 2, 0).byte().cpu().numpy()

    def masks(self, scenes: Sequence[Scene]) -> Tensor:
        """What the objects of each name cover: (B, 2, H, W), 0 to 1; a missing one covers nothing.

        Several of one kind have one name.
        """
        side = self.settings.image_size
        masks = torch.zeros(len(scenes), 2, side, side, device=self.device)
        for picture, scene in zip(masks, scenes, strict=True):
            kinds = list(dict.fromkeys(drawn.concept for drawn in scene.objects))
            for drawn in scene.objects:
                x, y, size = drawn.box
                clear = self._layer(drawn, size)[1]
                mask = picture[kinds.index(drawn.concept)]
                mask[y : y + size, x : x + size] = 1 - clear[0]
        return masks

    def _paint(self, scenes: Sequence[Scene], side: int) -> Tensor:
        """Pictures (B, 3, side, side), whole levels 0-255 as float32."""
        scale = side // self.settings.image_size
        colors = [self.settings.backgrounds[scene.background] for scene in scenes]
        canvas = torch.tensor(colors, dtype=torch.float32, device=self.device)
        canvas = canvas[:, :, None, None].repeat(1, 1, side, side)
        for picture, scene in zip(canvas, scenes, strict=True):
            for drawn in scene.objects:
                x, y, size = (scale * value for value in drawn.box)
                color, clear = self._layer(drawn, size)
                picture[:, y : y + size, x : x + size].mul_(clear).add_(color)
        return canvas.round_().clamp_(0, 255)

    def _one_object(self, random: np.random.Generator, setting: np.random.Generator) -> Scene:
        shares = self.settings.size_shares
        size = tuple(shares)[setting.choice(len(shares), p=tuple(shares.values()))]
        size = "" if size == "medium" else size
        stays = size == "big" or setting.random() < self.settings.center_share
        place = "center" if stays else PLACES[setting.integers(5)]
        background = self._background(setting)
        style, concept = self._pairs[random.integers(len(self._pairs))]
        box = self._box(random, SIZES[size], place)
        drawn = Drawn(concept, style, size, place, box)
        caption, names = self._captions.one(random, drawn, background)
        return Scene((drawn,), background, "", caption, names)

    def _two_objects(self, random: np.random.Generator, setting: np.random.Generator) -> Scene:
        relation = tuple(RELATIONS)[setting.integers(4)]
        background = self._background(setting)
        style, first, second = self._two_concepts(random)
        dx, dy = RELATIONS[relation]
        # The first object at the relation's side, the second opposite.
        boxes = [box_beside(sign * dx, sign * dy, self.settings.image_size) for sign in (1, -1)]
        objects = (
            Drawn(first, style, "small", "", boxes[0]),
            Drawn(second, style, "small", "", boxes[1]),
        )
        caption, names = self._captions.two(random, objects, relation, background)
        return Scene(objects, background, relation, caption, names)

    def _two_concepts(self, random: np.random.Generator) -> tuple[str, str, str]:
        """Style and two different concepts, of the held-out combinations or never of them."""
        while True:
            style, first = self._pairs[random.integers(len(self._pairs))]
            if self._held_out and self._combinations:
                names = sorted(sorted(pair) for pair in self._combinations)
                first, second = random.permutation(names[random.integers(len(names))])
                styles = list(self.settings.styles)
                return styles[random.integers(len(styles))], str(first), str(second)
            same_style = [concept for s, concept in self._pairs if s == style and concept != first]
            if not same_style:
                continue
            second = same_style[random.integers(len(same_style))]
            if (frozenset((first, second)) in self._combinations) == self._held_out:
                return style, first, second
            if self._held_out:  # no combinations are held out: any two held-out drawings will do
                return style, first, second

    def _background(self, random: np.random.Generator) -> str:
        names = tuple(self.settings.backgrounds)
        return names[random.integers(len(names))]

    def _box(self, random: np.random.Generator, size: int, place: str) -> tuple[int, int, int]:
        x, y, _ = box_at(place, size, self.settings.image_size)
        free = self.settings.image_size - size
        jitter = self.settings.jitter
        if jitter:
            x, y = (int(np.clip(v + random.integers(-jitter, jitter + 1), 0, free)) for v in (x, y))
        return x, y, size

    def _layer(self, drawn: Drawn, size: int) -> tuple[Tensor, Tensor]:
        """A drawing `size` pixels wide, reduced once and kept: colour and what shows through.

        color (3, size, size), 0-255, is multiplied by alpha before it is reduced, lest clear pixels
        lend theirs; clear (1, size, size) is 1 - alpha.
        """
        key = (drawn.style, drawn.concept, drawn.color, size)
        if key not in self._layers:
            picture = self._drawings[drawn.style, drawn.concept]
            picture = recolor(picture, drawn.color) if drawn.color else picture
            straight = picture.astype(np.float32)
            straight[..., :3] *= straight[..., 3:] / 255
            channels = [
                Image.fromarray(straight[..., c]).resize((size, size), Image.Resampling.BOX)
                for c in range(4)
            ]
            layer = torch.from_numpy(np.stack([np.asarray(channel) for channel in channels]))
            layer = layer.to(self.device)
            self._layers[key] = (layer[:3], 1 - layer[3:] / 255)
        return self._layers[key]
