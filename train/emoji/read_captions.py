"""Between recipes (b) and (c): a trained text encoder learns words that it has not met.

    python -m train.emoji.extend_vocabulary
    python -m train.emoji.read_captions

A UNet learns hundreds of new names slowly, since all that it tells the text encoder about a word
comes back through blurred pictures. What a caption says is known, though: linear probes ask the
text encoder for it (Alain and Bengio 2016, arXiv:1610.01644). Which thing a name means is asked at
the tokens of the name, so that all names of a thing, in both languages, come to lie in one
direction; what else is said is asked at the end mark and at the last token, where the whole caption
has been read. The probes are dropped afterwards.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdcore.text.encoder import CLIPTextEncoder
from sdcore.text.tokenizer import Tokenizer
from sdcore.training.command import main
from sdcore.training.run import Run
from sdcore.training.run_settings import RunSettings
from train.emoji.data.layout import PLACES, RELATIONS, SIZES, Scene
from train.emoji.data.scenes import Scenes
from train.emoji.data.settings import DataSettings, SceneSettings
from train.emoji.grounding import object_marks


class ReadingSettings(SceneSettings):
    start_from: str = "runs/emoji/vocabulary"  # holds tokenizer/ and text_encoder/
    run: RunSettings


class Probes(nn.Module):
    """A text encoder, and a linear probe for each thing that a caption may say.

    Args:
        concepts: how many things there are, of which an object is one.
        answers: how many answers each of the other questions has.
    """

    def __init__(self, text_encoder: CLIPTextEncoder, concepts: int, answers: list[int]) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        width = text_encoder.config.hidden_size
        self.concept = nn.Linear(width, concepts)
        self.others = nn.ModuleList(nn.Linear(width, count) for count in answers)

    def loss(
        self, ids: Tensor, marks: Tensor, concepts: Tensor, truth: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Mean cross entropy of the questions, and the share of right answers of each.

        Args:
            ids: of captions (B, T).
            marks: the tokens that name each object (B, T, G); of a missing object, none.
            concepts: which thing each object is (B, G).
            truth: the right answers to the other questions (B, questions).
        """
        read = self.text_encoder(ids)
        state = read.last_hidden_state  #                                            (B, T, D)
        named = marks.any(1)  #                                                      (B, G)
        share = marks / marks.sum(1, keepdim=True).clamp(min=1)
        names = (share.transpose(1, 2) @ state.to(share.dtype))[named]  #            (objects, D)
        ends = torch.cat([read.pooled, state[:, -1]])  #                             (2B, D)
        asked = [(self.concept(names), concepts[named])]
        asked += [(probe(ends), truth[:, i].repeat(2)) for i, probe in enumerate(self.others)]
        losses = [F.cross_entropy(scores.float(), right) for scores, right in asked]
        return (
            torch.stack(losses).mean(),
            [(scores.argmax(-1) == right).float().mean() for scores, right in asked],
        )


def possible_answers(data: DataSettings) -> dict[str, list[str]]:
    """Question -> what a scene's answer may be, in the order of the probe's scores."""
    return {
        "style": list(data.styles),
        "background": list(data.backgrounds),
        "size": list(SIZES),
        "place": [*PLACES, *RELATIONS],  # of two objects, where the first is seen from the second
    }


def answers(scene: Scene) -> dict[str, str]:
    """What is in a scene; captions may leave some of it out."""
    first = scene.objects[0]
    return {
        "style": first.style,
        "background": scene.background,
        "size": first.size,
        "place": scene.relation or first.place,
    }


def train(settings: ReadingSettings) -> None:
    settings = settings.with_data()
    data = settings.data
    assert isinstance(data, DataSettings)
    scenes, source = Scenes(data), Path(settings.start_from)
    tokenizer = Tokenizer.from_pretrained(source / "tokenizer")
    torch.manual_seed(settings.run.seed)
    possible, concepts = possible_answers(data), list(data.concepts)
    text_encoder = CLIPTextEncoder.from_pretrained(source / "text_encoder")
    probes = Probes(text_encoder, len(concepts), [len(some) for some in possible.values()])
    run = Run(settings, settings.run, probes)
    size, device = settings.run.batch_size, run.device

    def batch(indices: range) -> tuple[Tensor, ...]:
        """ids, marks, concepts and truth, as `Probes.loss` takes them."""
        chosen = [scenes.scene(settings.run.seed, index) for index in indices]
        captions = [scene.caption for scene in chosen]
        tokens = tokenizer(captions)
        marks = object_marks(tokens, captions, [scene.names for scene in chosen])
        which = torch.zeros(len(chosen), marks.shape[-1], dtype=torch.long)
        for row, scene in zip(which, chosen, strict=True):
            for i, concept in enumerate(dict.fromkeys(d.concept for d in scene.objects)):
                row[i] = concepts.index(concept)
        found = [answers(scene) for scene in chosen]
        truth = torch.tensor([[possible[q].index(one[q]) for q in possible] for one in found])
        return tokens.ids.to(device), marks.to(device), which.to(device), truth.to(device)

    for step in run.steps():
        with run.autocast():
            loss, right = probes.loss(*batch(range(step * size, (step + 1) * size)))
        norm = run.update(loss)
        names = ("concept", *possible)
        run.log(loss=loss, grad_norm=norm, **dict(zip(names, right, strict=True)))
    tokenizer.save_pretrained(run.folder / "tokenizer")
    probes.text_encoder.save_pretrained(run.folder / "text_encoder")


if __name__ == "__main__":
    main(train, ReadingSettings, "configs/train/emoji_reading.yaml", __doc__)
