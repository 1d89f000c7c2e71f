"""Word heatmaps: equal to the explicit map on every backend and family, in every kind of run."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from sdcore import TextToImage, use_attention
from sdcore.attention import BACKENDS, Site
from sdcore.attention_choice import unavailable
from sdcore.control.heatmaps import WordHeatmaps, marked_attention
from sdcore.errors import UsageError
from sdcore.image.overlay import heat_colors, lay_over
from sdcore.pipeline.image_heatmaps import heatmaps_of_image
from sdcore.prompt.tokens import read_tokens
from sdcore.text.tokenizer import Span, Tokenizer, Tokens
from sdcore.text.tokenizer_files import END, START
from sdcore.text.words import column_marks, find_words, word_positions
from tests import tiny
from tests.control.runs import STEP
from tests.explicit_map import attention_map, heat, make_attend

HERE = [name for name in BACKENDS if unavailable(name) is None]
PROMPT = "a red fox, on grass"


class ExplicitHeatmaps:
    """DAAM's way: the whole map of every layer, in a dictionary."""

    def __init__(self, marks):
        self.marks, self.maps = marks, {}

    def __call__(self, site, grid, q, k, v, attend):
        if site.kind == "cross":
            maps = heat(attention_map(q.double(), k.double()), self.marks)
            maps = maps.transpose(1, 2).unflatten(2, grid)
            self.maps.setdefault((site.place, site.level, site.index), []).append(maps)
        return attend(q, k, v)


@pytest.fixture(scope="module")
def sd(sd_folder):
    return TextToImage.from_pretrained(sd_folder)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_vocab(*tiny.vocabulary(), max_length=16)


# --- words -------------------------------------------------------------------------------------


def test_words_are_found_in_any_case_in_a_row_and_more_than_once(tokenizer):
    spans = tokenizer("A red fox, a big tree Fox").spans[0]
    assert find_words(spans, "fox") == [(2,), (7,)]
    assert find_words(spans, "Big  Tree") == [(5, 6)]
    assert find_words(spans, "fox,") == [(2, 3)]
    assert find_words(spans, "a") == [(0,), (4,)]


def test_a_word_that_is_not_there_names_near_ones(tokenizer):
    tokens = tokenizer(PROMPT)
    for word, near in (("foks", "fox"), ("gras", "grass"), ("REDD", "red")):
        with pytest.raises(UsageError, match=f"Did you mean '{near}'"):
            word_positions(tokens, 0, word)
    for word in ("", "zebra", "fox grass"):
        with pytest.raises(UsageError, match="not in the prompt"):
            word_positions(tokens, 0, word)


def test_a_word_of_several_byte_pairs_has_all_its_positions(tokenizer):
    tokens = tokenizer("a foxxy cat")  # "foxxy" is unknown and falls into letters
    positions = word_positions(tokens, 0, "foxxy")
    assert len(positions) > 1 and positions == list(tokens.spans[0][1].positions)


def test_a_word_that_was_cut_off_is_reported(tokenizer):
    with pytest.warns(UserWarning, match="cut"):
        tokens = tokenizer("a " * 14 + "fox")
    with pytest.raises(UsageError, match="do not reach"):
        word_positions(tokens, 0, "fox")


def test_every_position_belongs_to_one_column(tokenizer):
    tokens = tokenizer([PROMPT, "a cat", ""])
    marks = column_marks([tokens])
    assert (marks.sum(dim=-1) == 1).all()
    assert marks[0, 0, 0] == 1 and marks[0, 1:, 0].sum() == 0  # the start token alone
    assert marks[1, :, 1].sum() == 16 - 1 - 2 and marks[2, :, 1].sum() == 15  # end and padding
    assert marks[0, word_positions(tokens, 0, "fox")[0], 2 + 2] == 1


def test_chunks_of_a_long_prompt_have_a_start_and_an_end_each():
    """As the tokens of a prompt over 75 tokens are: several rows beside each other."""
    first = Span("fox", 0, 3, range(1, 3))
    second = Span("fox", 9, 12, range(5, 6))
    ids = torch.tensor([[90, 1, 2, 91, 90, 1, 91, 91]])
    tokens = Tokens(ids, torch.ones(1, 8), ((first, second),), ("",))
    marks = column_marks([tokens])[0]
    assert marks[:, 0].nonzero().flatten().tolist() == [0, 4]
    assert marks[:, 1].nonzero().flatten().tolist() == [3, 6, 7]
    assert word_positions(tokens, 0, "fox") == [1, 2, 5]


def test_a_prompt_repeated_to_the_length_of_another_has_its_words_in_every_repetition():
    ids = torch.tensor([[90, 1, 2, 91, 90, 1, 2, 91], [90, 3, 91, 91, 90, 3, 91, 91]])
    once = (Span("fox", 0, 3, range(1, 3)),)
    twice = (Span("cat", 0, 3, range(1, 2)), Span("cat", 9, 12, range(5, 6)))
    tokens = Tokens(ids, torch.ones(2, 8), (once, twice), ("", ""))
    assert word_positions(tokens, 0, "fox") == [1, 2, 5, 6]
    marks = column_marks([tokens])
    assert marks[0, :, 2].nonzero().flatten().tolist() == [1, 2, 5, 6]
    assert marks[1, :, 2].nonzero().flatten().tolist() == [1]
    assert marks[1, :, 3].nonzero().flatten().tolist() == [5]


def test_where_two_tokenizers_differ_a_position_counts_half_for_each_word():
    ids = torch.tensor([[90, 1, 2, 91]])
    spans = [Span("red", 0, 3, range(1, 2)), Span("fox", 4, 7, range(2, 3))]
    longer = [Span("red", 0, 3, range(1, 3)), Span("fox", 4, 7, range(3, 4))]
    both = [Tokens(ids, torch.ones(1, 4), (tuple(s),), ("",)) for s in (spans, longer)]
    marks = column_marks(both)[0]
    assert marks[2].tolist() == [0, 0, 0.5, 0.5] and marks[3].tolist() == [0, 0.5, 0, 0.5]
    other = Tokens(ids, torch.ones(1, 4), ((spans[0],),), ("",))
    with pytest.raises(UsageError, match="do not belong together"):
        WordHeatmaps([both[0], other])


# --- the maps ----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("columns, width", [(3, 8), (8, 8), (20, 8), (5, 40)])
def test_marked_columns_are_those_of_the_explicit_map(backend, columns, width):
    generator = torch.Generator().manual_seed(columns)
    q, k = (torch.randn(4, 3, n, width, dtype=torch.float64, generator=generator) for n in (15, 21))
    marks = torch.rand(2, 21, columns, dtype=torch.float64, generator=generator)
    mask = torch.rand(4, 1, 1, 21, generator=generator) > 0.4
    for used in (None, mask):
        maps = marked_attention(q, k, marks, width, make_attend(backend, used))
        expected = heat(attention_map(q, k, used), marks)
        torch.testing.assert_close(maps.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("family", ["sd_folder", "sd2_folder", "sdxl_folder"])
def test_a_run_gives_the_maps_of_the_explicit_way_and_the_same_picture(request, family, backend):
    pipe = TextToImage.from_pretrained(request.getfixturevalue(family))
    use_attention(pipe.unet, backend)
    prompts = [PROMPT, "a cat"]
    readings = [tokenizer(prompts) for tokenizer, _ in pipe.readers]
    heatmaps = WordHeatmaps(readings)
    explicit = ExplicitHeatmaps(column_marks(readings))
    kwargs = {"steps": 2, "seed": 1, "width": 40, "height": 72, "images_per_prompt": 2}
    seen = pipe(prompts, control=heatmaps, **kwargs)
    plain = pipe(prompts, control=explicit, **kwargs)
    assert torch.equal(seen.latents, plain.latents)
    assert len(heatmaps.recorded) == len(explicit.maps)
    assert {grid for _, _, grid in heatmaps.recorded} <= {(9, 5), (5, 3)}
    for place, maps in explicit.maps.items():
        expected = torch.stack(maps).mean(dim=0)
        for image in range(4):
            found = heatmaps.maps(
                image=image, sites=lambda s, p=place: (s.place, s.level, s.index) == p
            )
            torch.testing.assert_close(found.double(), expected[image], rtol=1e-5, atol=1e-6)
    for image in range(4):  # of start, words, end and padding: all attention there is
        everything = heatmaps.maps(image=image).sum(dim=0)
        torch.testing.assert_close(everything, torch.ones_like(everything))


def test_guidance_off_images_in_and_negative_prompts(sd):
    tokens, negative = sd.tokenizer("a fox"), sd.tokenizer("bad drawing")
    picture = Image.new("RGB", (72, 40), "teal")
    mask = Image.new("L", (72, 40), 255)
    maps = []
    for kwargs in (
        {"guidance_scale": 1.0},
        {"guidance_scale": 3.0},
        {"guidance_scale": 3.0, "image": picture, "strength": 0.6},
        {"guidance_scale": 3.0, "image": picture, "mask": mask},
    ):
        heatmaps = WordHeatmaps(tokens)
        sd("a fox", steps=4, seed=2, control=heatmaps, **kwargs)
        maps.append(heatmaps.of("fox"))
    assert [tuple(m.shape) for m in maps] == [(8, 8), (8, 8), (5, 9), (5, 9)]
    assert not torch.equal(maps[0], maps[1])

    heatmaps = WordHeatmaps(tokens, negative=WordHeatmaps(negative))
    sd("a fox", negative_prompt="bad drawing", steps=2, seed=2, control=heatmaps)
    assert heatmaps.negative.of("drawing").shape == (8, 8)
    torch.testing.assert_close(heatmaps.negative.maps().sum(dim=0), torch.ones(8, 8))


@pytest.mark.parametrize("family", ["sd_folder", "sdxl_folder"])
def test_long_and_weighted_prompts_beside_short_ones(request, family):
    """Two chunks in a batch with one, which is repeated: maps are those of a run of its own."""
    pipe = TextToImage.from_pretrained(request.getfixturevalue(family))
    prompts = ["a (red:1.3) fox, " * 20 + "on the big tree", "a [blue] cat"]
    run = {"steps": 1, "dialect": "a1111", "guidance_scale": 1.0}

    def record(prompts, seed):
        readings = [read_tokens(prompts, tokenizer, "a1111") for tokenizer, _ in pipe.readers]
        heatmaps = WordHeatmaps(readings)
        pipe(prompts, control=heatmaps, seed=seed, **run)
        return heatmaps

    both = record(prompts, 1)
    assert both.tokens.ids.shape == (2, 154)
    tree = both.of("tree")
    assert tree.mean() > 0 and torch.isfinite(tree).all()
    everything = both.maps(image=1).sum(dim=0)
    torch.testing.assert_close(everything, torch.ones_like(everything))
    alone = record(prompts[1], 2)
    torch.testing.assert_close(both.of("cat", image=1), alone.of("cat"), rtol=1e-4, atol=1e-6)
    assert [s.span.word for s in alone.share()] == ["a", "blue", "cat"]


def test_windows_of_steps_are_kept_apart_and_add_up(sd):
    tokens = sd.tokenizer("a fox")
    together, apart = WordHeatmaps(tokens), WordHeatmaps(tokens, windows=4)
    for heatmaps in (together, apart):
        sd("a fox", steps=4, seed=2, scheduler="ddim", control=heatmaps)
    each = [apart.of("fox", steps=(i / 4, (i + 1) / 4)) for i in range(4)]
    assert not torch.equal(each[0], each[3])
    torch.testing.assert_close(torch.stack(each).mean(dim=0), together.of("fox"))
    torch.testing.assert_close(apart.of("fox"), together.of("fox"))
    torch.testing.assert_close(apart.of("fox", steps=(0, 0.5)), (each[0] + each[1]) / 2)


def test_the_negative_prompts_heatmaps_keep_to_their_own_windows(sd):
    run = {"steps": 4, "seed": 2, "scheduler": "ddim", "negative_prompt": "bad drawing"}
    maps = []
    for windows in (1, 4):
        negative = WordHeatmaps(sd.tokenizer("bad drawing"))
        tokens = sd.tokenizer("a fox")
        sd("a fox", control=WordHeatmaps(tokens, windows=windows, negative=negative), **run)
        assert {window for window, _, _ in negative.recorded} == {0}
        maps.append(negative.of("drawing"))
    assert torch.equal(*maps)


def test_shares_are_of_all_attention_and_say_what_is_ignored(sd, tokenizer):
    tokens = sd.tokenizer("a fox fox")
    heatmaps = WordHeatmaps(tokens)
    sd("a fox fox", steps=1, seed=0, control=heatmaps)
    shares = heatmaps.share()
    assert [s.span.word for s in shares] == ["a", "fox", "fox"]
    rest = sum(float(heatmaps.of(name).mean()) for name in (START, END))
    # means of one grid each; SD's tiny UNet attends on two
    assert sum(s.share for s in shares) < 1 and 0 < rest < 1
    torch.testing.assert_close(heatmaps.of("fox"), heatmaps.of(1) + heatmaps.of(2))
    assert all(s.peak >= s.share for s in shares) and not any(s.cut for s in shares)
    ignored = {s.span.start: s.ignored for s in shares}
    assert ignored == {s.span.start: s.peak <= 1 / 77 for s in shares}


def test_words_cut_from_the_prompt_are_reported(sd):
    prompt = "a " * 74 + "foxxy cat"
    with pytest.warns(UserWarning, match="cut"):
        tokens = sd.tokenizer(prompt)
        heatmaps = WordHeatmaps(tokens)
        sd(prompt, steps=1, control=heatmaps)
    cut = {s.span.word: s.cut for s in heatmaps.share()}
    assert cut == {"a": False, "foxxy": True, "cat": True}
    with pytest.raises(UsageError, match="did not reach"):
        heatmaps.of("cat")


def test_reading_what_is_not_there_is_refused(sd):
    tokens = sd.tokenizer("a fox")
    heatmaps = WordHeatmaps(tokens, windows=2)
    with pytest.raises(UsageError, match="empty"):
        heatmaps.of("fox")
    sd("a fox", steps=1, control=heatmaps)
    for kwargs in ({"image": 1}, {"steps": (0.5, 1)}, {"sites": lambda site: site.level == 7}):
        with pytest.raises(UsageError):
            heatmaps.of("fox", **kwargs)
    for word in ("foxy", 2, -1):
        with pytest.raises(UsageError):
            heatmaps.of(word)
    with pytest.raises(UsageError, match="windows"):
        WordHeatmaps(tokens, windows=0)


def test_a_second_run_begins_anew(sd):
    heatmaps = WordHeatmaps(sd.tokenizer("a fox"))
    first = []
    for _ in range(2):
        sd("a fox", steps=1, seed=3, control=heatmaps)
        first.append(heatmaps.of("fox").clone())
    assert torch.equal(*first)


def test_maps_of_any_size(sd):
    heatmaps = WordHeatmaps(sd.tokenizer("a fox"))
    sd("a fox", steps=1, width=48, height=64, control=heatmaps)
    assert heatmaps.of("fox").shape == (8, 6)
    assert heatmaps.of("fox", size=(64, 48)).shape == (64, 48)
    assert heatmaps.of("fox", size=(2, 2)).mean() == pytest.approx(
        float(heatmaps.of("fox").mean()), rel=0.2
    )


def test_the_gradient_of_a_map_is_that_of_the_explicit_map(sd):
    tokens = sd.tokenizer("a fox")
    text = sd.text_encoder(tokens.ids).last_hidden_state.detach().double()
    unet = sd.unet.double()
    try:
        x = torch.randn(1, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        gradients = []
        for control in (
            WordHeatmaps(tokens, differentiable=True),
            ExplicitHeatmaps(column_marks([tokens])),
        ):
            latents = x.clone().requires_grad_()
            maps_only = isinstance(control, ExplicitHeatmaps)
            unet(latents, 500, text, control if maps_only else control.at(STEP))
            if isinstance(control, WordHeatmaps):
                loss = control.of("fox", sites=lambda site: site.level == 0).max()
            else:
                maps = [m for place, found in control.maps.items() for m in found if place[1] == 0]
                loss = torch.stack(maps).mean(dim=0)[0, 2 + 1].max()
            gradients.append(torch.autograd.grad(loss, latents)[0])
        assert gradients[0].abs().max() > 0
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-9)
        plain = WordHeatmaps(tokens)
        unet(x.clone().requires_grad_(), 500, text, plain.at(STEP))
        assert not plain.of("fox").requires_grad
    finally:
        unet.float()


def test_half_precision_values_are_summed_in_float32():
    site = Site("up", 0, kind="cross", name="up_blocks.0.attentions.0.transformer_blocks.0.attn2")
    ids = torch.tensor([[90, 1, 91, 91]])
    tokens = Tokens(ids, torch.ones(1, 4), ((Span("fox", 0, 3, range(1, 2)),),), ("",))
    q, k, v = (torch.randn(1, 2, n, 8, dtype=torch.bfloat16) for n in (6, 4, 4))
    heatmaps = WordHeatmaps(tokens)
    for _ in range(300):  # 256 + 1 is 256 in bfloat16
        heatmaps.at(STEP)(site, (2, 3), q, k, v, make_attend("reference"))
    expected = heat(attention_map(q.double(), k.double()), heatmaps.marks)
    assert heatmaps.of("fox").dtype == torch.float32
    torch.testing.assert_close(
        heatmaps.of("fox").flatten().double(), expected[0, :, 2], rtol=0.02, atol=0.01
    )


# --- pictures ----------------------------------------------------------------------------------


def test_an_overlay_is_as_large_as_the_picture_and_shows_the_place(sd):
    heat_map = torch.zeros(4, 4)
    heat_map[1, 2] = 1
    picture = Image.new("RGB", (40, 24), "black")
    shown = lay_over(picture, heat_map, strength=1)
    assert shown.size == (40, 24)
    assert shown.getpixel((25, 9))[0] > 200 > shown.getpixel((3, 20))[0]
    colors = heat_colors(torch.linspace(0, 1, 12).reshape(3, 4))
    assert (colors.sum(dim=-1).flatten().diff() > 0).all()  # readable in grey
    assert heat_colors(torch.ones(2, 2)).isfinite().all()


def test_a_real_picture_is_looked_at_once_for_each_time(sd, sdxl_folder, refiner_folder):
    picture = Image.new("RGB", (75, 49), "white")
    picture.paste((200, 30, 30), (10, 10, 40, 40))
    for pipe in (sd, *map(TextToImage.from_pretrained, (sdxl_folder, refiner_folder))):
        heatmaps = heatmaps_of_image(pipe, picture, "a red fox", times=(100, 500))
        windows = {window for window, _, _ in heatmaps.recorded}
        assert windows == {0, 1}
        assert max(grid for _, _, grid in heatmaps.recorded) in ((6, 9), (3, 5))
        assert not torch.equal(
            heatmaps.of("fox", steps=(0, 0.5)), heatmaps.of("fox", steps=(0.5, 1))
        )
        marked = heatmaps_of_image(pipe, picture, "a (red:1.3) [cat:fox:1]", dialect="a1111")
        assert [span.word for span in marked.tokens.spans[0]][:2] == ["a", "red"]
        assert marked.of("red").isfinite().all()
    for times in ((1000,), (), (0.5,)):
        with pytest.raises(UsageError):
            heatmaps_of_image(sd, picture, "a red fox", times=times)
