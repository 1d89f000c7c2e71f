"""A control made when its run begins is the control that it makes, in all that a run asks."""

from __future__ import annotations

import pytest
import torch

from sdcore import TextToImage
from sdcore.control.chain import chain, during
from sdcore.control.heatmaps import WordHeatmaps
from sdcore.control.made_at_begin import MadeAtBegin, tokens_in_run
from sdcore.control.reweight import Reweight
from sdcore.control.run_control import RunControl
from tests.control.runs import STEP, make_run

RUN = {"seed": 1, "steps": 2, "dialect": "compel"}


@pytest.fixture(scope="module")
def pipe(sd_folder):
    return TextToImage.from_pretrained(sd_folder)


def tokenizers(pipe):
    return [tokenizer for tokenizer, _ in pipe.readers]


@pytest.mark.parametrize("wrap", [lambda c: c, chain, lambda c: during(c, 0, 0.5)])
def test_what_is_made_takes_part_in_its_place(pipe, wrap):
    prompt, negative = "a red fox", "a red cat, " * 30  # the prompt is filled up to as many chunks

    def make(run):
        (tokens,) = tokens_in_run(tokenizers(pipe), prompt, "compel", run)
        assert tokens.ids.shape[1] == run.text_tokens > pipe.tokenizer.max_length
        return Reweight(tokens, {"red": -2.0})

    made = MadeAtBegin(make)
    ours = pipe(prompt, negative_prompt=negative, control=wrap(made), **RUN).latents
    direct = pipe(prompt, negative_prompt=negative, control=wrap(made.made), **RUN).latents
    plain = pipe(prompt, negative_prompt=negative, **RUN).latents
    assert torch.equal(ours, direct) and not torch.equal(ours, plain)


def test_its_negative_control_is_used_as_well(pipe):
    negative = WordHeatmaps(pipe.tokenizer("a red cat"))
    made = MadeAtBegin(lambda run: WordHeatmaps(run.tokens, negative=negative))
    pipe("a red fox", negative_prompt="a red cat", control=chain(made), **RUN)
    assert made.made.of("fox").shape == negative.of("cat").shape == (8, 8)


def test_latents_and_guesses_are_handed_on():
    class Counts(RunControl):
        def before_step(self, step, latents, predict):
            return latents + 1

        def after_step(self, step, latents):
            return latents + 2

        def on_guess(self, step, guess):
            guesses.append(guess())

    guesses: list[str] = []
    control = MadeAtBegin(lambda run: Counts())
    control.begin(make_run())
    assert control.before_step(STEP, 0, None) == 1 and control.after_step(STEP, 0) == 2
    control.on_guess(STEP, lambda: "clean")
    assert guesses == ["clean"]
