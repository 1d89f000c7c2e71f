"""A text encoder learns newcomers' words from the words that it knows, without pictures.

    python -m train.emoji.extend_vocabulary
    python -m train.emoji.paraphrase

"a picture of a cute fox!" asks for what "a big fox in flat style on a white background" asks for,
and a UNet that paints the second paints the first as soon as it reads the same in it. What it reads
are the outputs of its cross-attention layers, softmax(q Kᵀ/√d) V. So these are taught: for queries
q that the trained UNet has put, the outputs of the newcomer's caption are to be those that the
model as it is has for the caption of the grammar. Which tokens are attended to is taught as well,
of the tokens that name things: heatmaps stay where they are. A share of the captions is of the
grammar itself and has to go on meaning what it means.

A step needs no picture and no pass of the UNet: a twentieth of what a step of the UNet's own
recipe takes. It cannot teach what the UNet cannot paint: other colours of a thing, three of a kind.
The UNet is taught those afterwards (configs/train/emoji_words.yaml). `left` is the share of the
outputs' variance, over captions, that is not met.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sdcore.attention import Attend, CrossAttention, Site
from sdcore.files.saving import save_component
from sdcore.image.autoencoder import Autoencoder
from sdcore.text.encoder import CLIPTextEncoder
from sdcore.text.tokenizer import Tokenizer
from sdcore.training.command import main
from sdcore.training.objective import NoiseSettings, Objective
from sdcore.training.run import Run
from sdcore.training.run_settings import RunSettings
from sdcore.unet.unet import UNet
from train.emoji.data.captions import PLACE_WORDS, with_article
from train.emoji.data.layout import Scene
from train.emoji.data.own_words import of_many
from train.emoji.data.scenes import Scenes
from train.emoji.data.settings import DataSettings, SceneSettings
from train.emoji.data.words import save_words
from train.emoji.grounding import object_marks
from train.emoji.pretrain_unet import SCHEDULER

BANK = 4096  # queries of each layer that are kept
PICTURES = 96  # scenes whose queries they are
SPREAD = 160  # captions, and queries, of which the variance of what is read is taken
CHECKED = 192  # captions that were not in training


class ParaphraseSettings(SceneSettings):
    teacher: str = "sdcore/models/emoji"  # the model as it is
    vocabulary: str = "runs/emoji/vocabulary"  # tokenizer/ and text_encoder/ to begin with
    own_words: float = 0.75  # share of the captions; the others are the grammar's
    empty: float = 0.02  # share of the captions that say nothing
    queries: int = 64  # of each layer, in a step
    naming: float = 0.1  # weight of where the names are attended to
    run: RunSettings


@dataclass(frozen=True)
class Said:
    """A caption and what it calls the things, in its order."""

    caption: str
    names: tuple[str, ...]


def in_grammar(scene: Scene) -> Said | None:
    """What the grammar says of a scene of own_scenes.py; None where it has no words for it."""
    first = scene.objects[0]
    if len(scene.objects) > 2 or any(drawn.color for drawn in scene.objects):
        return None
    end = f"in {first.style} style"
    on = f"on {with_article(scene.background)} background"
    if len(scene.objects) == 2:
        names = tuple(drawn.concept for drawn in scene.objects)
        a, b = (with_article(name) for name in names)
        return Said(f"{a} to the left of {b} {end} {on}", names)
    thing = with_article(f"{first.size} {first.concept}".strip())
    where = [] if first.size == "big" else [PLACE_WORDS[first.place][0]]
    return Said(" ".join([thing, end, *where, on]), (first.concept,))


def pairs(
    scenes: Scenes, grammar: Scenes, settings: ParaphraseSettings, seed: int, step: int, size: int
) -> list[tuple[Said, Said]]:
    """Batch number `step`: captions to learn, each with the one that means the same."""
    import numpy as np

    random, found = np.random.default_rng((seed, 2, step)), []
    while len(found) < size:
        draw, index = random.random(), int(random.integers(1 << 40))
        if draw < settings.own_words:
            scene = scenes.scene(seed, index)
            known = in_grammar(scene)
            if known is not None:
                found.append((Said(scene.caption, scene.names), known))
        elif draw < 1 - settings.empty:
            scene = grammar.scene(seed, index)
            found.append((Said(scene.caption, scene.names),) * 2)
        else:
            found.append((Said("", ()),) * 2)
    return found


class Readings(nn.Module):
    """What the cross-attention layers of a UNet read in a text, for a bank of queries.

    Args:
        layers: frozen; queries: of each, (H, BANK, d).
    """

    def __init__(self, layers: Sequence[CrossAttention], queries: Sequence[Tensor]) -> None:
        super().__init__()
        self.keys = nn.ModuleList(layer.to_k for layer in layers)
        self.values = nn.ModuleList(layer.to_v for layer in layers)
        self.queries = list(queries)
        self.requires_grad_(False)

    def keep(self, chosen: Sequence[int]) -> None:
        """Read with these layers alone."""
        self.keys = nn.ModuleList(self.keys[i] for i in chosen)
        self.values = nn.ModuleList(self.values[i] for i in chosen)
        self.queries = [self.queries[i] for i in chosen]

    def forward(self, text: Tensor, marks: Tensor, some: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Of each layer: what is read (B, H, n, d), and attention to names (B, H, n, G).

        Args:
            text: states of the text encoder (B, T, D); marks: tokens of names (B, T, G).
            some: which queries of the bank (n,).
        """
        found = []
        for key, value, bank in zip(self.keys, self.values, self.queries, strict=True):
            heads = bank.shape[0]
            k, v = (
                layer(text).unflatten(-1, (heads, -1)).transpose(1, 2) for layer in (key, value)
            )
            q = bank[:, some]
            weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1)  # (B, H, n, T)
            found.append((weights @ v, weights @ marks[:, None]))
        return found


class Collector:
    """A control that changes nothing and keeps queries of the cross-attention."""

    def __init__(self) -> None:
        self.queries: dict[str, list[Tensor]] = {}

    def __call__(
        self, site: Site, grid: tuple[int, int], q: Tensor, k: Tensor, v: Tensor, attend: Attend
    ) -> Tensor:
        if site.kind == "cross":
            self.queries.setdefault(site.name, []).append(q.detach().transpose(0, 1).flatten(1, 2))
        return attend(q, k, v)


@torch.no_grad()
def collect(
    teacher: Path, unet: UNet, scenes: Scenes, text_encoder: CLIPTextEncoder, tokenizer: Tokenizer
) -> Readings:
    """The readings of a UNet, with queries that it puts to noised scenes at all times."""
    chosen = [scenes.scene(3, i) for i in range(PICTURES)]
    autoencoder = Autoencoder.from_pretrained(teacher / "vae")
    config = SCHEDULER | {"prediction_type": "v_prediction"}
    objective = Objective(config, NoiseSettings(time_power=0.6), device="cpu")
    collector = Collector()
    for start in range(0, PICTURES, 16):
        part = chosen[start : start + 16]
        latents = autoencoder.encode(scenes.images(part, autoencoder.config.side))
        noised = objective.draw(latents, 3, start)
        text = text_encoder(tokenizer([scene.caption for scene in part]).ids).last_hidden_state
        unet(noised.latents, noised.times, text, collector)
    random, queries, layers = torch.Generator().manual_seed(3), [], []
    for name, kept in collector.queries.items():
        whole = torch.cat(kept, 1)  # (H, B N, d)
        some = torch.randint(whole.shape[1], (BANK,), generator=random)
        queries.append(whole[:, some].contiguous())
        layer = unet.get_submodule(name)
        assert isinstance(layer, CrossAttention)
        layers.append(layer)
    return Readings(layers, queries)


def together(marks: Tensor, said: Sequence[Said], known: Sequence[Said]) -> Tensor:
    """Marks of the grammar's names (B, T, 2), those of two alike summed: "two foxes" has one."""
    marks = marks.clone()
    for row, ours, theirs in zip(marks, said, known, strict=True):
        if len(ours.names) < len(theirs.names):
            row[:, 0], row[:, 1] = row.sum(-1), 0
    return marks


def train(settings: ParaphraseSettings) -> None:
    settings = settings.with_data()
    data = settings.data
    assert isinstance(data, DataSettings)
    torch.manual_seed(settings.run.seed)
    scenes, grammar = Scenes(data, own_words=1.0), Scenes(data)
    source, start = Path(settings.teacher), Path(settings.vocabulary)
    known_tokens = Tokenizer.from_pretrained(source / "tokenizer")
    teacher = CLIPTextEncoder.from_pretrained(source / "text_encoder").eval()
    tokenizer = Tokenizer.from_pretrained(start / "tokenizer")
    run = Run(settings, settings.run, CLIPTextEncoder.from_pretrained(start / "text_encoder"))
    unet = UNet.from_pretrained(source / "unet").eval()
    readings = collect(source, unet, grammar, teacher, known_tokens).to(run.device)
    readings.queries = [bank.to(run.device) for bank in readings.queries]
    teacher.to(run.device)

    spread = torch.ones(2, len(readings.queries))

    def loss(batch: Sequence[tuple[Said, Said]], some: Tensor) -> tuple[Tensor, Tensor]:
        """What is left of the readings, and of the attention to names; of variance 1 each."""
        ours, theirs = [said for said, _ in batch], [known for _, known in batch]
        given, marks = states(run.module, tokenizer, ours)
        with torch.no_grad():
            wanted, known_marks = states(teacher, known_tokens, theirs)
            right = readings(wanted, together(known_marks, ours, theirs), some)
        answer = readings(given, marks, some)
        rows = list(zip(answer, right, strict=True))
        read = [(a - b).square().mean() for (a, _), (b, _) in rows]
        named = [(a - b).square().mean() for (_, a), (_, b) in rows]
        of_all = spread.to(run.device)
        return (torch.stack(read) / of_all[0]).mean(), (torch.stack(named) / of_all[1]).mean()

    def states(
        encoder: nn.Module, tokens_of: Tokenizer, said: Sequence[Said]
    ) -> tuple[Tensor, Tensor]:
        captions = [one.caption for one in said]
        tokens = tokens_of(captions)
        marks = object_marks(tokens, captions, [one.names for one in said])
        state = encoder(tokens.ids.to(run.device)).last_hidden_state.float()
        return state, marks.to(run.device)

    usual = settings.model_copy(update={"own_words": 0.0, "empty": 0.0})
    with torch.no_grad():
        known = [said for said, _ in pairs(grammar, grammar, usual, 4, 0, SPREAD)]
        found = readings(*states(teacher, known_tokens, known), torch.arange(SPREAD))
        spread = torch.stack([_spread([pair[i] for pair in found]) for i in (0, 1)])
    # Where all queries look away from the text, its captions differ in nothing.
    chosen = [i for i, value in enumerate(spread[0]) if value > spread[0].mean() / 100]
    readings.keep(chosen)
    spread = spread[:, chosen]

    for step in run.steps():
        draw = torch.Generator().manual_seed(step)
        some = torch.randint(BANK, (settings.queries,), generator=draw)
        batch = pairs(scenes, grammar, settings, settings.run.seed, step, settings.run.batch_size)
        with run.autocast():
            read, named = loss(batch, some)
        norm = run.update(read + settings.naming * named)
        run.log(left=read, names_left=named, grad_norm=norm)
        if (step + 1) % settings.run.sample_every == 0:
            with run.averaged(), torch.no_grad():
                row: dict[str, float] = {"step": step + 1}
                for name, share in (("own", 1.0), ("grammar", 0.0)):
                    asked = settings.model_copy(update={"own_words": share, "empty": 0.0})
                    batch = pairs(scenes, grammar, asked, settings.run.seed + 1, 0, CHECKED)
                    row[f"{name}_left"] = round(float(loss(batch, torch.arange(64))[0]), 5)
            run.write("evaluation.jsonl", row)

    with run.averaged():
        export(run, source, tokenizer, scenes)


def _spread(read: Sequence[Tensor]) -> Tensor:
    """The variance over captions of what each layer reads (B, H, n, d): (layers,).

    At least a thousandth of the largest.
    """
    variances = torch.stack([(one - one.mean(0)).square().mean() for one in read])
    return variances.clamp(min=float(variances.max()) / 1000)


def export(run: Run, source: Path, tokenizer: Tokenizer, scenes: Scenes) -> None:
    """The whole model, with the taught text encoder."""
    folder = run.folder / "model"
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(source, folder)
    for part in ("tokenizer", "text_encoder"):
        shutil.rmtree(folder / part)
    tokenizer.save_pretrained(folder / "tokenizer")
    assert isinstance(run.module, CLIPTextEncoder)
    save_component(run.module, folder / "text_encoder", dtype=torch.float16, shard_bytes=14_000_000)
    save_words(scenes, folder, of_many())  # `in_grammar` knows none of them


if __name__ == "__main__":
    main(train, ParaphraseSettings, "configs/train/emoji_paraphrase.yaml", __doc__)
