"""Recipe (c): the UNet of the embedded model, taught to remove noise from scenes it is told about.

    python -m train.emoji.pretrain_unet
    python -m train.emoji.pretrain_unet run.batch_size=256 run.steps=20000        # on a GPU

The autoencoder of recipe (a) stays frozen. The text encoder of recipe (b) is trained on: what it
learned tells concepts and colours apart, but nothing asked it to keep sizes and places. A tenth of
the captions is dropped, which is what guidance needs (Ho & Salimans 2022, arXiv:2207.12598). A last
stage ties the words of an object to its place (grounding.py, configs/train/emoji_grounding.yaml).
Besides the loss, watch `wrong_concept_minus_right`: how much worse the UNet does when the caption
names another concept. It moves before the pictures do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sdcore.attention import Control
from sdcore.attention_choice import use_attention
from sdcore.diffusion.schedulers import make_scheduler
from sdcore.files.atomic import json_writer, replace_files, text_writer
from sdcore.files.saving import save_component
from sdcore.image.autoencoder import Autoencoder
from sdcore.pipeline.text_to_image import TextToImage
from sdcore.text.encoder import CLIPTextEncoder
from sdcore.text.recurrent_encoder import RecurrentTextEncoder, load_text_encoder
from sdcore.text.tokenizer import Tokenizer, Tokens
from sdcore.training.command import main
from sdcore.training.objective import NoiseSettings, Objective, draw_noise
from sdcore.training.run import Run
from sdcore.training.run_settings import RunSettings
from sdcore.unet.unet import UNet, UNetConfig
from train.emoji.data.captions import PLACE_WORDS
from train.emoji.data.layout import PLACES, Drawn, Scene
from train.emoji.data.scenes import Scenes
from train.emoji.data.settings import DataSettings, SceneSettings
from train.emoji.data.words import save_words
from train.emoji.grounding import Grounding, object_marks
from train.emoji.imitate_text_encoder import TextNetwork, fresh_text_encoder

SCHEDULER = {  # all of `scheduler_config` but the prediction type
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    # Stable Diffusion stops at 0.012, where a 16x16 grid still shows the background colour through
    # the noise; pictures would then start from a colour that no caption asked for.
    "beta_end": 0.02,
    "timestep_spacing": "trailing",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "safety_checker": [None, None],
    "requires_safety_checker": False,
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
# How it is best run.
SAMPLING: dict[str, Any] = {"steps": 25, "guidance_scale": 2.0, "scheduler": "dpm++ 2m"}
SAMPLES = 16  # pictures of the grid that is painted now and then


class UNetSettings(SceneSettings):
    autoencoder: str = "runs/emoji/autoencoder/vae"
    text_encoder: str = "runs/emoji/text_encoder"  # holds tokenizer/ and text_encoder/
    # The one that it holds, or a fresh network of the same width, layers and number of weights.
    text_network: Literal["trained"] | TextNetwork = "trained"
    block_out_channels: list[int] = [64, 160, 256]
    down_block_types: list[str] = ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"]
    up_block_types: list[str] = ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]
    layers_per_block: int = 1
    heads: int = 4
    start_from: str = ""  # folder of a UNet whose weights to begin with; empty: random ones
    own_words: float = 0.0  # share of the scenes that are told in newcomers' own words
    train_text_encoder: bool = True  # False: leave it as recipe (b) made it
    train_convolutions: bool = True  # False: of the UNet, only what attends, and what follows it
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "v_prediction"
    weighting: Literal["plain", "min_snr", "soft_min_snr", "p2"] = "plain"  # noise.loss_weight
    time_power: float = 0.6  # time = 1000 u^power, u uniform; below 1 noisy times come more often
    caption_dropout: float = 0.1
    grounding: float = 0.0  # weight of the loss that ties words to their objects; see grounding.py
    run: RunSettings


def scheduler_config(settings: UNetSettings) -> dict[str, Any]:
    """scheduler_config.json of the model that a run exports."""
    return SCHEDULER | {"prediction_type": settings.prediction_type}


class Network(nn.Module):
    """What is trained: the UNet, and the text encoder that it reads."""

    def __init__(self, unet: UNet, text_encoder: CLIPTextEncoder | RecurrentTextEncoder) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(
        self, latents: Tensor, time: Tensor | int, ids: Tensor, control: Control | None = None
    ) -> Tensor:
        """latents (B, C, h, w), ids (B, T) -> prediction (B, C, h, w)."""
        return self.unet(latents, time, self.text_encoder(ids).last_hidden_state, control)


@dataclass(frozen=True)
class Batch:
    """Scenes as the networks see them.

    scenes: as they are told; of some, nothing is.
    tokens: of their captions, ids (B, T); latents (B, C, h, w).
    """

    scenes: list[Scene]
    tokens: Tokens
    latents: Tensor


class Source:
    """Batches of scenes, drawn and encoded on the fly.

    Latents of one-object scenes are kept, because without jitter they come again and again.
    """

    def __init__(self, settings: UNetSettings, scenes: Scenes) -> None:
        self.seed, self.scenes, self.device = settings.run.seed, scenes, torch.device("cpu")
        self.dropout = settings.caption_dropout
        self.scheduler = scheduler_config(settings)
        self.autoencoder = Autoencoder.from_pretrained(settings.autoencoder)
        self.tokenizer = Tokenizer.from_pretrained(Path(settings.text_encoder) / "tokenizer")
        self._kept: dict[Scene, Tensor] = {}

    def to(self, device: torch.device) -> None:
        self.device = self.scenes.device = device
        self.autoencoder.to(device)

    def batch(self, step: int, size: int) -> Batch:
        """The batch of step number `step`."""
        indices = range(step * size, (step + 1) * size)
        chosen = [self.scenes.scene(self.seed, index) for index in indices]
        draws = np.random.default_rng((self.seed, 1, step)).random(size)
        told = [
            replace(s, caption="", names=()) if d < self.dropout else s
            for d, s in zip(draws, chosen, strict=True)
        ]
        return Batch(told, self.tokenizer([s.caption for s in told]), self.latents(chosen))

    def grounding(self, batch: Batch) -> Grounding:
        """The control that ties the words of a batch to its objects."""
        captions, names = zip(*((s.caption, s.names) for s in batch.scenes), strict=True)
        marks = object_marks(batch.tokens, captions, names).to(self.device)
        return Grounding(marks, self.scenes.masks(batch.scenes))

    def ids(self, captions: list[str]) -> Tensor:
        return self.tokenizer(captions).ids.to(self.device)

    @torch.no_grad()
    def latents(self, chosen: list[Scene]) -> Tensor:
        # Pictures know no captions.
        scenes = [replace(scene, caption="", names=()) for scene in chosen]
        missing = list(dict.fromkeys(scene for scene in scenes if scene not in self._kept))
        fresh: dict[Scene, Tensor] = {}
        if missing:
            image = self.scenes.images(missing, self.autoencoder.config.side)
            fresh = dict(zip(missing, self.autoencoder.encode(image), strict=True))
        if not self.scenes.settings.jitter:
            # Cloned, since a row of a batch would keep the whole batch in memory.
            self._kept |= {scene: x.clone() for scene, x in fresh.items() if scene.single}
        return torch.stack([fresh[s] if s in fresh else self._kept[s] for s in scenes])


def train(settings: UNetSettings) -> None:
    settings = settings.with_data()
    data = settings.data
    assert isinstance(data, DataSettings)
    torch.manual_seed(settings.run.seed)
    source = Source(settings, Scenes(data, own_words=settings.own_words))
    network = build(settings, source.autoencoder)
    run = Run(settings, settings.run, network)
    use_attention(network, "auto")  # chosen for the device that the run took
    device = run.device
    source.to(device)
    objective = Objective(
        scheduler_config(settings),
        NoiseSettings(weighting=settings.weighting, time_power=settings.time_power),
        device=device,
    )
    check = Check(source, objective)

    for step in run.steps():
        with run.autocast():
            batch = source.batch(step, settings.run.batch_size)
        noised = objective.draw(batch.latents, settings.run.seed, step)
        grounding = source.grounding(batch) if settings.grounding else None
        with run.autocast():
            ids = batch.tokens.ids.to(device)
            answer = network(noised.latents, noised.times, ids, grounding)
        loss = objective.loss(answer, noised)
        grounded = grounding.loss() if grounding else torch.zeros(())
        norm = run.update(loss + settings.grounding * grounded)
        run.log(loss=loss, grounding=grounded, grad_norm=norm)
        if (step + 1) % settings.run.sample_every == 0:
            with run.averaged():
                run.write("evaluation.jsonl", {"step": step + 1, **check(run)})
                sample_grid(run, source, step + 1)

    with run.averaged():
        export(run, source)


def build(settings: UNetSettings, autoencoder: Autoencoder) -> Network:
    text_encoder = make_text_encoder(settings)
    text_encoder.requires_grad_(settings.train_text_encoder)
    if settings.start_from:
        unet = UNet.from_pretrained(settings.start_from)
    else:
        unet = UNet(config(settings, autoencoder, text_encoder.config.hidden_size))
    if not settings.train_convolutions:
        for name, weight in unet.named_parameters():
            weight.requires_grad_(".attentions." in name)
    return Network(unet.train(), text_encoder.train())


def make_text_encoder(settings: UNetSettings) -> CLIPTextEncoder | RecurrentTextEncoder:
    trained = load_text_encoder(Path(settings.text_encoder) / "text_encoder")
    if settings.text_network == "trained":
        return trained
    assert isinstance(trained, CLIPTextEncoder)
    return fresh_text_encoder(settings.text_network, trained.config)


def config(settings: UNetSettings, autoencoder: Autoencoder, text_width: int) -> UNetConfig:
    return UNetConfig(
        sample_size=autoencoder.config.side // autoencoder.factor,
        in_channels=autoencoder.latent_channels,
        out_channels=autoencoder.latent_channels,
        block_out_channels=tuple(settings.block_out_channels),
        down_block_types=tuple(settings.down_block_types),
        up_block_types=tuple(settings.up_block_types),
        layers_per_block=settings.layers_per_block,
        attention_head_dim=settings.heads,
        cross_attention_dim=text_width,
    )


class Check:
    """Loss on 64 fixed scenes with the right caption, with one word of it wrong, and with none."""

    TIMES = (980, 900, 700)

    def __init__(self, source: Source, objective: Objective) -> None:
        found = (source.scenes.scene(7, i) for i in range(300))
        chosen = [scene for scene in found if scene.single and scene.objects[0].size != "big"]
        self.objective, self.latents = objective, source.latents(chosen[:64])
        drawn = [(scene.objects[0], scene.background) for scene in chosen[:64]]
        concepts = list(source.scenes.settings.concepts)
        other_concept = dict(zip(concepts, concepts[len(concepts) // 2 :] + concepts, strict=False))
        other_place: dict[str, str] = dict(zip(PLACES, (*PLACES[1:], PLACES[0]), strict=True))

        def caption(one: Drawn, background: str) -> str:
            words = " ".join(word for word in ("a", one.size, one.concept) if word)
            return f"{words} in {one.style} style {PLACE_WORDS[one.place][0]} on {background}"

        wrong_concept = [(replace(d, concept=other_concept[d.concept]), b) for d, b in drawn]
        wrong_place = [(replace(d, place=other_place[d.place]), b) for d, b in drawn]
        captions = {
            "right": [caption(*row) for row in drawn],
            "wrong_concept": [caption(*row) for row in wrong_concept],
            "wrong_place": [caption(*row) for row in wrong_place],
            "empty": [""] * len(drawn),
        }
        self.ids = {name: source.ids(texts) for name, texts in captions.items()}
        self.noise = draw_noise(self.latents.shape, 7, 0).to(self.latents.device)

    @torch.no_grad()
    def __call__(self, run: Run) -> dict[str, float]:
        row = {}
        for time in self.TIMES:
            noised = self.objective.add_noise(self.latents, self.noise, time)
            losses = {}
            for name, ids in self.ids.items():
                with run.autocast():
                    answer = run.module(noised.latents, time, ids)
                losses[name] = float((answer.float() - noised.target).square().mean())
            row[f"right_{time}"] = round(losses["right"], 5)
            for name in ("wrong_concept", "wrong_place", "empty"):
                row[f"{name}_minus_right_{time}"] = round(losses[name] - losses["right"], 5)
        return row


def sample_grid(run: Run, source: Source, step: int) -> None:
    """Paint the captions of 16 fixed scenes into `samples/`, each above its scene.

    The weights are those that would be exported; the captions stand in `samples/captions.txt`.
    """
    scenes = [source.scenes.scene(8, i) for i in range(SAMPLES)]
    captions = [scene.caption for scene in scenes]
    painted = pipeline(run, source)(captions, seed=1, steps=20, guidance_scale=2.0).images
    side = painted[0].width
    grid = Image.new("RGB", (8 * side, SAMPLES // 8 * 2 * side))
    for i, (image, scene) in enumerate(zip(painted, scenes, strict=True)):
        x, y = i % 8 * side, i // 8 * 2 * side
        grid.paste(image, (x, y))
        grid.paste(Image.fromarray(source.scenes.picture(scene, side)), (x, y + side))
    files = {
        "captions.txt": text_writer("\n".join(captions) + "\n"),
        f"step-{step:06d}.png": grid.save,
    }
    replace_files(run.folder / "samples", files)


def pipeline(run: Run, source: Source) -> TextToImage:
    scheduler, network = make_scheduler("ddim", source.scheduler), run.module
    assert isinstance(network, Network)
    text_encoder: Any = network.text_encoder  # a recurrent one is called in the same way
    return TextToImage(source.tokenizer, text_encoder, network.unet, source.autoencoder, scheduler)


def export(run: Run, source: Source) -> None:
    """Write the whole model as a diffusers folder, weights in float16, no file over 14 MB."""
    folder = run.folder / "model"
    pipe = pipeline(run, source)
    assert pipe.text_encoder is not None
    networks = {"text_encoder": pipe.text_encoder, "unet": pipe.unet, "vae": pipe.autoencoder}
    for name, network in networks.items():
        save_component(network, folder / name, dtype=torch.float16, shard_bytes=14_000_000)
    source.tokenizer.save_pretrained(folder / "tokenizer")
    pipe.scheduler.save_pretrained(folder / "scheduler")
    index = dict(MODEL_INDEX)
    if isinstance(pipe.text_encoder, RecurrentTextEncoder):  # transformers has no such class
        index["text_encoder"] = ["sdcore", "RecurrentTextEncoder"]
    settings = {"model_index.json": json_writer(index), "sampling.json": json_writer(SAMPLING)}
    replace_files(folder, settings)
    save_words(source.scenes, folder)


if __name__ == "__main__":
    main(train, UNetSettings, "configs/train/emoji_unet.yaml", __doc__)
