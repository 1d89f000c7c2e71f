"""A text encoder of another network, taught to give what a trained one gives.

    python -m train.emoji.imitate_text_encoder network=lstm
        run.folder=runs/text_encoders/lstm/imitated

A UNet that was trained with one text encoder reads its vectors alone; a fresh text encoder in front
of it learns that language only slowly from what the pictures lack. So it first learns the vectors:
the squared distance of all T of them, on captions of scenes, without any picture. What another
network cannot say of a prompt shows in `left`, the share of their variance that it leaves over.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from sdcore.text.config import CLIPTextConfig
from sdcore.text.encoder import CLIPTextEncoder
from sdcore.text.recurrent_encoder import RecurrentTextConfig, RecurrentTextEncoder
from sdcore.text.tokenizer import Tokenizer
from sdcore.training.command import main
from sdcore.training.run import Run
from sdcore.training.run_settings import RunSettings
from train.emoji.data.scenes import Scenes
from train.emoji.data.settings import DataSettings, SceneSettings

TextNetwork = Literal["transformer", "lstm", "rnn"]
CHECKED = 256  # scenes whose captions were not in training


class ImitationSettings(SceneSettings):
    teacher: str = "sdcore/models/emoji"  # holds tokenizer/ and text_encoder/
    network: TextNetwork
    run: RunSettings


def imitate(settings: ImitationSettings) -> None:
    settings = settings.with_data()
    data = settings.data
    assert isinstance(data, DataSettings)
    torch.manual_seed(settings.run.seed)
    source = Path(settings.teacher)
    tokenizer = Tokenizer.from_pretrained(source / "tokenizer")
    teacher = CLIPTextEncoder.from_pretrained(source / "text_encoder").eval()
    run = Run(settings, settings.run, fresh_text_encoder(settings.network, teacher.config))
    device, size, scenes = run.device, settings.run.batch_size, Scenes(data)
    teacher.to(device)

    def ids(seed: int, indices: range) -> Tensor:
        return tokenizer([scenes.scene(seed, i).caption for i in indices]).ids.to(device)

    def left(ids: Tensor) -> Tensor:
        """Share of the teacher's variance that is not explained; a scalar."""
        with torch.no_grad():
            wanted = teacher(ids).last_hidden_state  # (B, T, D)
        given = run.module(ids).last_hidden_state.float()
        return (given - wanted).square().mean() / wanted.var(dim=(0, 1)).mean()

    for step in run.steps():
        with run.autocast():
            loss = left(ids(settings.run.seed, range(step * size, (step + 1) * size)))
        norm = run.update(loss)
        run.log(left=loss, grad_norm=norm)
        if (step + 1) % settings.run.sample_every == 0:
            with run.averaged(), torch.no_grad():
                kept = float(left(ids(settings.run.seed + 1, range(CHECKED))))
            run.write("evaluation.jsonl", {"step": step + 1, "left": round(kept, 5)})

    with run.averaged():
        tokenizer.save_pretrained(run.folder / "tokenizer")
        assert isinstance(run.module, CLIPTextEncoder | RecurrentTextEncoder)
        run.module.save_pretrained(run.folder / "text_encoder")


def fresh_text_encoder(
    network: TextNetwork, like: CLIPTextConfig
) -> CLIPTextEncoder | RecurrentTextEncoder:
    """Random weights; a recurrent network has the width, layers and number of weights of `like`."""
    with torch.random.fork_rng(devices=[]):  # what is made next is the same whichever it is
        if network == "transformer":
            return CLIPTextEncoder(like)
        return RecurrentTextEncoder(RecurrentTextConfig.matching(like, network))


if __name__ == "__main__":
    main(imitate, ImitationSettings, "configs/train/text_encoder_imitation.yaml", __doc__)
