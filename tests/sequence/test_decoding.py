"""Greedy and beam decoding, against every text that there is, for every kind of network."""

from __future__ import annotations

import itertools

import pytest
import torch

from sdcore.errors import UsageError
from sdcore.sequence.decoding import beam_search, greedy
from sdcore.sequence.recurrent_translator import RecurrentTranslator, RecurrentTranslatorConfig
from sdcore.sequence.transformer import Transformer, TransformerConfig

WORDS, FIRST, LAST, MOST = 4, 0, 3, 3
SOURCE = torch.tensor([[1, 2, 3, 4], [4, 4, 0, 0], [2, 1, 0, 0]])
REAL = SOURCE > 0
MODELS = ["transformer", "rnn", "lstm", "lstm with attention"]


@pytest.fixture(params=MODELS, scope="module")
def model(request) -> torch.nn.Module:
    torch.manual_seed(8)
    if request.param == "transformer":
        made = Transformer(TransformerConfig(5, WORDS, width=16, heads=2))
    else:
        cell, *attention = request.param.split(" with ")
        made = RecurrentTranslator(
            RecurrentTranslatorConfig(5, WORDS, 16, cell, attention=bool(attention))
        )
    with torch.no_grad():  # a fresh network is undecided, and any search would do
        for parameter in made.parameters():
            parameter.mul_(2.0)
    return made.eval().double()


def all_texts() -> list[tuple[int, ...]]:
    """Every text of at most MOST words, with its end mark unless it was broken off."""
    others = [word for word in range(WORDS) if word != LAST]
    texts = [(*text, LAST) for n in range(MOST) for text in itertools.product(others, repeat=n)]
    return texts + list(itertools.product(others, repeat=MOST))


@torch.no_grad()
def log_probabilities(model, row: int, texts: list[tuple[int, ...]]) -> list[float]:
    """log P(text | source row) of each, all its words read at once."""
    target = torch.tensor([(FIRST, *text, *[LAST] * (MOST - len(text))) for text in texts])
    source, real = (x[row : row + 1].expand(len(texts), -1) for x in (SOURCE, REAL))
    chances = model(source, target[:, :-1], real).log_softmax(dim=-1)
    chances = chances.gather(2, target[:, 1:, None])[..., 0]  # (texts, MOST)
    return [chances[i, : len(text)].sum().item() for i, text in enumerate(texts)]


def cut(words: torch.Tensor) -> tuple[int, ...]:
    text = words.tolist()
    return tuple(text[: text.index(LAST) + 1] if LAST in text else text)


@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0])
def test_enough_beams_find_the_best_of_all_texts(model, penalty):
    texts = all_texts()
    assert sum(3**n for n in range(MOST)) + 3**MOST == len(texts) == 40
    found = beam_search(
        model, SOURCE, REAL, first=FIRST, last=LAST, most=MOST, beams=40, length_penalty=penalty
    )
    for row in range(len(SOURCE)):
        chances = log_probabilities(model, row, texts)
        wanted = {
            text: chance / ((5 + len(text)) / 6) ** penalty
            for text, chance in zip(texts, chances, strict=True)
        }
        ours = [cut(words) for words in found.words[row]]
        assert sorted(ours) == sorted(texts), "every text once"
        scores = torch.tensor([wanted[text] for text in ours])
        torch.testing.assert_close(found.scores[row], scores, rtol=0, atol=1e-5)
        assert found.scores[row].diff().max() <= 0


@pytest.mark.parametrize("beams", [2, 3])
def test_few_beams_are_scored_truly(model, beams):
    found = beam_search(
        model, SOURCE, REAL, first=FIRST, last=LAST, most=MOST, beams=beams, length_penalty=0.0
    )
    for row in range(len(SOURCE)):
        texts = [cut(words) for words in found.words[row]]
        assert len(set(texts)) == beams
        scores = torch.tensor(log_probabilities(model, row, texts))
        torch.testing.assert_close(found.scores[row], scores, rtol=0, atol=1e-5)


def test_one_beam_is_greedy(model):
    how = {"first": FIRST, "last": LAST, "most": 6}
    written = greedy(model, SOURCE, REAL, **how)
    found = beam_search(model, SOURCE, REAL, beams=1, **how)
    assert torch.equal(found.words[:, 0], written)


def test_without_an_end_mark_every_row_has_all_its_words(model):
    ended = greedy(model, SOURCE, REAL, first=FIRST, last=LAST, most=6)
    whole = greedy(model, SOURCE, REAL, first=FIRST, last=None, most=6)
    assert whole.shape == (len(SOURCE), 6)
    for row, same in zip(whole, ended, strict=True):
        until = (same == LAST).nonzero()
        length = int(until[0]) + 1 if len(until) else len(same)
        assert torch.equal(row[:length], same[:length])


def test_greedy_takes_the_best_next_word_of_all_words_read_at_once(model):
    """The kept state gives what reading the whole text again for every word gives."""
    written = greedy(model, SOURCE, REAL, first=FIRST, last=LAST, most=6)
    for row in range(len(SOURCE)):
        text = [FIRST]
        while len(text) <= 6 and (len(text) == 1 or text[-1] != LAST):
            logits = model(SOURCE[row : row + 1], torch.tensor([text]), REAL[row : row + 1])
            text.append(int(logits[0, -1].argmax()))
        assert cut(written[row]) == tuple(text[1:])


def test_padding_of_the_source_changes_nothing(model):
    target = torch.tensor([[FIRST, 2, 1]])
    with torch.no_grad():
        padded = model(SOURCE[1:2], target, REAL[1:2])
        torch.testing.assert_close(padded, model(SOURCE[1:2, :2], target))
        assert not torch.allclose(padded, model(SOURCE[1:2], target), atol=1e-3)


def test_rows_do_not_touch_each_other(model):
    how = {"first": FIRST, "last": LAST, "most": 6, "beams": 3}
    together = beam_search(model, SOURCE, REAL, **how)
    for row in range(len(SOURCE)):
        alone = beam_search(model, SOURCE[row : row + 1], REAL[row : row + 1], **how)
        assert [cut(w) for w in alone.words[0]] == [cut(w) for w in together.words[row]]


def test_nothing_to_write_is_refused(model):
    with pytest.raises(UsageError, match="most is 0"):
        greedy(model, SOURCE, first=FIRST, last=LAST, most=0)
    with pytest.raises(UsageError, match="beams is 0"):
        beam_search(model, SOURCE, first=FIRST, last=LAST, most=3, beams=0)
