"""Recipe (b): the text encoder of the embedded model, taught as CLIP was, with an image tower.

    python -m train.emoji.pretrain_text_encoder

A batch holds pictures and their captions; each picture must find its caption among all, and each
caption its picture (Radford et al. 2021, arXiv:2103.00020). Half of the batches share one stage
(background, size, place), so that the drawing itself has to be read: without that, colour alone
answers nearly every question. The image tower is dropped afterwards.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from sdcore.text.encoder import CLIPTextConfig, CLIPTextEncoder
from sdcore.text.tokenizer import END, START, Tokenizer
from sdcore.training.command import main
from sdcore.training.run import Run
from sdcore.training.run_settings import RunSettings
from train.emoji.data.scenes import Scenes
from train.emoji.data.settings import DataSettings, SceneSettings
from train.emoji.data.vocabulary import learn_vocabulary


class TextSettings(SceneSettings):
    start_from: str = ""  # holds tokenizer/ and text_encoder/ to begin with; empty: new ones
    vocabulary: int = 1024  # of new ones, at most so many tokens; as are the next four
    max_tokens: int = 32
    width: int = 256
    layers: int = 4
    heads: int = 4
    image_width: int = 192
    image_layers: int = 4
    image_patch: int = 8  # pixels
    shared_stage_every: int = 2  # every so many batches share one stage
    run: RunSettings


class Contrast(nn.Module):
    """Text encoder, image tower, and the two projections into the space where they are compared."""

    def __init__(self, text: CLIPTextEncoder, settings: TextSettings, image_size: int) -> None:
        super().__init__()
        vision = CLIPVisionConfig(
            hidden_size=settings.image_width,
            intermediate_size=4 * settings.image_width,
            projection_dim=settings.width,
            num_hidden_layers=settings.image_layers,
            num_attention_heads=settings.image_width // 48,
            image_size=image_size,
            patch_size=settings.image_patch,
        )
        self.text_encoder = text
        self.text_projection = nn.Linear(settings.width, settings.width, bias=False)
        self.image_tower = CLIPVisionModelWithProjection(vision)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def embed_text(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> unit vectors (B, D)."""
        return F.normalize(self.text_projection(self.text_encoder(ids).pooled).float(), dim=-1)

    def embed_image(self, image: Tensor) -> Tensor:
        """image (B, 3, H, W) -> unit vectors (B, D)."""
        return F.normalize(self.image_tower(image).image_embeds.float(), dim=-1)

    def loss(self, ids: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Symmetric cross entropy of the batch, and the share of pictures that find their caption.

        Equal captions count as one: a picture may point at any of them.
        """
        scale = self.log_scale.clamp(max=math.log(100)).exp()
        logits = scale * self.embed_image(image) @ self.embed_text(ids).T  # (B images, B captions)
        same = (ids[:, None] == ids[None]).all(-1).float()
        target = same / same.sum(-1, keepdim=True)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        found = same.gather(1, logits.argmax(-1, keepdim=True)).mean()
        return loss, found


def batch(
    scenes: Scenes, tokenizer: Tokenizer, seed: int, indices: range, stage: int | None
) -> tuple[Tensor, Tensor]:
    """Token ids (B, T), cut to the longest caption, and pictures (B, 3, H, W) in [-1, 1]."""
    chosen = [scenes.scene(seed, index, stage) for index in indices]
    ids = tokenizer([scene.caption for scene in chosen]).ids
    longest = int((ids != ids[0, -1]).sum(-1).max()) + 1  # the text and its end mark
    return ids[:, :longest], scenes.images(chosen)


def begin(settings: TextSettings, scenes: Scenes) -> tuple[Tokenizer, CLIPTextEncoder]:
    """Tokenizer and text encoder before the first step."""
    if settings.start_from:
        folder = Path(settings.start_from)
        text_encoder = CLIPTextEncoder.from_pretrained(folder / "text_encoder")
        return Tokenizer.from_pretrained(folder / "tokenizer"), text_encoder
    vocabulary, merges = learn_vocabulary(
        (scenes.scene(settings.run.seed, i).caption for i in range(20_000)), settings.vocabulary
    )
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=settings.width,
        intermediate_size=4 * settings.width,
        projection_dim=settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        max_position_embeddings=settings.max_tokens,
        pad_token_id=vocabulary[END],
        bos_token_id=vocabulary[START],
        eos_token_id=vocabulary[END],
    )
    tokenizer = Tokenizer.from_vocab(vocabulary, merges, max_length=settings.max_tokens)
    return tokenizer, CLIPTextEncoder(config)


def train(settings: TextSettings) -> None:
    settings = settings.with_data()
    data = settings.data
    assert isinstance(data, DataSettings)
    scenes, unseen = Scenes(data), Scenes(data, held_out=True)
    torch.manual_seed(settings.run.seed)
    tokenizer, text_encoder = begin(settings, scenes)
    model = Contrast(text_encoder, settings, data.image_size)
    run = Run(settings, settings.run, model)
    size, device = settings.run.batch_size, run.device

    for step in run.steps():
        stage = None if step % settings.shared_stage_every else step
        indices = range(step * size, (step + 1) * size)
        ids, image = batch(scenes, tokenizer, settings.run.seed, indices, stage)
        with run.autocast():
            loss, found = model.loss(ids.to(device), image.to(device))
        norm = run.update(loss)
        run.log(loss=loss, found=found, grad_norm=norm, shared=stage is not None)
        if (step + 1) % settings.run.sample_every == 0:
            evaluate(run, model, tokenizer, scenes, unseen, list(data.concepts))

    tokenizer.save_pretrained(run.folder / "tokenizer")
    model.text_encoder.save_pretrained(run.folder / "text_encoder")


@torch.no_grad()
def evaluate(
    run: Run,
    model: Contrast,
    tokenizer: Tokenizer,
    seen: Scenes,
    unseen: Scenes,
    concepts: list[str],
) -> None:
    """Share of one-object scenes whose concept is found among all from the picture alone."""
    model.eval()
    ids = tokenizer([f"a {concept}" for concept in concepts]).ids.to(run.device)
    words = model.embed_text(ids)
    row: dict[str, float] = {"step": run.step + 1}
    for name, scenes in (("concept_seen", seen), ("concept_held_out", unseen)):
        chosen = [scene for scene in (scenes.scene(1, i) for i in range(600)) if not scene.relation]
        image = scenes.images(chosen).to(run.device)
        answer = torch.cat([model.embed_image(part) for part in image.split(64)]) @ words.T
        truth = torch.tensor([concepts.index(scene.objects[0].concept) for scene in chosen])
        row[name] = float((answer.argmax(-1).cpu() == truth).float().mean())
    run.write("evaluation.jsonl", row)
    model.train()


if __name__ == "__main__":
    main(train, TextSettings, "configs/train/emoji_text_encoder.yaml", __doc__)
