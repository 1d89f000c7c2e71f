"""Grounding: which words name which objects, where those are, and the loss that ties them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sdcore import TextToImage
from sdcore.attention_choice import use_attention
from sdcore.text.tokenizer import Tokenizer
from tests.explicit_map import attention_map, heat
from train.emoji.data.vocabulary import learn_vocabulary
from train.emoji.grounding import Grounding, object_marks, word_loss


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = ["a red apple to the left of an apple", *["红苹果", "苹果", "在", "左边", "一个", "，"]]
    return Tokenizer.from_vocab(*learn_vocabulary(texts, 700), max_length=16)


@pytest.mark.parametrize(
    ("caption", "names"),
    [
        ("an apple to the left of a red apple", ("apple", "red apple")),
        ("a red apple to the left of an apple", ("red apple", "apple")),
        ("红苹果在一个苹果左边", ("红苹果", "苹果")),
        ("苹果在红苹果左边，左边", ("苹果", "红苹果")),
        ("a red apple", ("red apple",)),
        ("a gradient die", ("die",)),  # and not the letters in "gradient"
        ("", ()),
    ],
)
def test_the_tokens_of_each_name_are_marked(
    tokenizer: Tokenizer, caption: str, names: tuple[str, ...]
) -> None:
    tokens = tokenizer(["an apple", caption])
    other, marks = object_marks(tokens, ["an apple", caption], [("apple",), names])
    ids = tokens.ids[1]
    assert marks.shape == (16, 2) and other[:, 0].sum() > 0
    for column, name in enumerate([*names, "", ""][:2]):
        found = tokenizer.decode(ids[marks[:, column].bool()])
        assert found.replace(" ", "") == name.replace(" ", "")
    assert marks.sum(1).max() <= 1


def test_a_name_that_the_caption_lacks_is_an_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="does not say 'pear'"):
        object_marks(tokenizer("an apple"), ["an apple"], [("pear",)])


def test_the_loss_is_what_lies_beside_the_object() -> None:
    masks = torch.zeros(1, 2, 4, 4)
    masks[0, 0, 1, 2], masks[0, 1, :, :2] = 1.0, 0.5  # half covered is full where no more is
    heat = torch.zeros(1, 2, 4, 4)
    heat[0, 0, 1, 2] = 0.01  # how much is read does not matter, only where
    assert word_loss(heat, masks)[0, 0] == 0
    heat[0, 1] = 0.2
    torch.testing.assert_close(word_loss(heat, masks)[0, 1], torch.tensor(0.25))
    heat[0, 0, 1, 2] = heat[0, 0, 0, 0] = 0.3
    torch.testing.assert_close(word_loss(heat, masks)[0, 0], torch.tensor(0.25))


@pytest.fixture
def pipe(sd_folder: Path) -> TextToImage:
    return TextToImage.from_pretrained(sd_folder)


def test_it_changes_nothing_and_equals_the_explicit_map(pipe: TextToImage) -> None:
    tokens = pipe.tokenizer(["a red apple", ""])
    marks = object_marks(tokens, ["a red apple", ""], [("apple",), ()])
    text = pipe.text_encoder(tokens.ids).last_hidden_state
    latents, masks = torch.randn(2, 4, 8, 8), torch.rand(2, 2, 64, 64)
    grounding, maps = Grounding(marks, masks), []

    def explicit(site, grid, q, k, v, attend):
        if site.kind == "cross":
            p = heat(attention_map(q, k), marks)  # (B, N, G)
            p = p.transpose(1, 2).unflatten(2, grid)
            maps.append(torch.nn.functional.interpolate(p, (8, 8), mode="bilinear"))
        return attend(q, k, v)

    plain = pipe.unet(latents, 500, text, explicit)
    assert torch.equal(pipe.unet(latents, 500, text, grounding), plain)
    covered = torch.nn.functional.adaptive_avg_pool2d(masks, (8, 8))
    wanted = word_loss(torch.stack(maps).mean(0), covered)[0, 0]  # the only word there is
    torch.testing.assert_close(grounding.loss(), wanted)
    dropped = Grounding(torch.zeros(2, 77, 2), masks)
    pipe.unet(latents, 500, text, dropped)
    assert dropped.loss() == 0


def test_training_on_it_moves_the_word_to_its_object(pipe: TextToImage) -> None:
    use_attention(pipe.unet, "sdpa")
    tokens = pipe.tokenizer("a red apple")
    marks = object_marks(tokens, ["a red apple"], [("apple",)])
    masks = torch.zeros(1, 2, 64, 64)
    masks[0, 0, :32, :32] = 1
    text = pipe.text_encoder(tokens.ids).last_hidden_state.detach()
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    optimizer, losses = torch.optim.AdamW(pipe.unet.parameters(), lr=3e-3), []
    for _ in range(12):
        grounding = Grounding(marks, masks)
        pipe.unet(latents, 500, text, grounding)
        loss = grounding.loss()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
