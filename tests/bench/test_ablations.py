"""What the ablations take away, against models and maps from which it is missing; the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.numpy import save_file
from torch import Tensor

from bench import ablations
from bench.ablations import choose_prompts, measure, paint
from bench.judge import Judge
from bench.taken_away import (
    Ablation,
    Case,
    InBoth,
    at_grid,
    blank_keys,
    blank_values,
    grids,
    mark,
    of_the_network,
    of_the_text,
    off,
    one_head,
    reads_text,
    shuffle,
    with_positions,
)
from bench.verdict import MEASURES
from sdcore import TextToImage, UNet
from sdcore.attention import CrossAttention, Site
from sdcore.control.chain import at_sites
from sdcore.control.run_control import as_run_control
from sdcore.errors import FileError, UsageError
from tests.control.runs import STEP
from tests.explicit_map import attention_map, make_attend
from train.emoji.data.drawings import load
from train.emoji.data.settings import DataSettings

CROSS = Site("mid", 0, kind="cross")
PROMPTS = ["a red fox on the tree", "a cat in a big big tree"]
CASES = [Case(PROMPTS[0], "fox", "red"), Case(PROMPTS[1], "cat", "big")]
CHOICES = {"steps": 3, "scheduler": "ddim", "guidance_scale": 4.0}
PAGE = Path(__file__).parents[2] / "docs" / "ablations.md"


@pytest.fixture(scope="module")
def pipe(sd_folder: Path) -> TextToImage:
    return TextToImage.from_pretrained(sd_folder)


@dataclass
class Sees:
    """An `Attend` that keeps the keys and values which it was called with."""

    seen: dict[str, Tensor]
    mask: Tensor | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, **_: Tensor | None) -> Tensor:
        self.seen.update(key=k, value=v)
        return q


def close(a: Image.Image, b: Image.Image) -> bool:
    return np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 1


def call(unet: UNet, control=None) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    latents, text = (torch.randn(s, generator=generator) for s in ((2, 4, 8, 8), (2, 7, 32)))
    with torch.no_grad():
        return unet(latents, torch.tensor(300.0), text, control=control)


def without(unet: UNet, change: Callable[[CrossAttention, Tensor], None], level=None) -> UNet:
    """A copy in which something is missing from the output projections, (D, H d) each."""
    unet = deepcopy(unet)
    for layer in unet.modules():
        if isinstance(layer, CrossAttention) and layer.site and level in (None, layer.site.level):
            change(layer, layer.to_out[0].weight.data)
    return unet


def test_off_is_a_unet_to_which_the_layer_gives_nothing(pipe: TextToImage) -> None:
    assert grids(pipe) == {(8, 8): 0, (4, 4): 1}
    whole = call(pipe.unet)
    for grid, level in grids(pipe).items():
        expected = call(without(pipe.unet, lambda _, w: w.zero_(), level))
        assert torch.equal(call(pipe.unet, at_grid(off, pipe, grid).at(STEP)), expected)
        assert (whole - expected).abs().max() > 1e-3
    everywhere = call(without(pipe.unet, lambda _, w: w.zero_()))
    assert torch.equal(call(pipe.unet, at_sites(off, reads_text).at(STEP)), everywhere)


def test_off_holds_for_the_negative_prompt_as_well(pipe: TextToImage) -> None:
    (everywhere,) = [a for a in of_the_network(pipe, guided=True) if a.name == "off everywhere"]
    given = {**CHOICES, "seed": 3, "negative_prompt": "bad drawing"}
    control = everywhere.control(pipe.tokenizer(PROMPTS), CASES)
    ours = pipe(PROMPTS, control=control, **given).latents
    emptied = pipe.unet, without(pipe.unet, lambda _, w: w.zero_())
    try:
        pipe.unet = emptied[1]
        expected = pipe(PROMPTS, **given).latents
    finally:
        pipe.unet = emptied[0]
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    one_side = pipe(PROMPTS, control=at_sites(off, reads_text), **given).latents
    assert (one_side - expected).abs().max() > 1e-2
    with pytest.raises(UsageError, match="negative prompt, which is not read"):
        pipe(PROMPTS, control=InBoth(off), seed=3, steps=1, guidance_scale=1)


def test_one_head_is_a_projection_of_that_head_alone(pipe: TextToImage) -> None:
    whole = call(pipe.unet)
    names = [ablation.name for ablation in of_the_network(pipe, guided=False)]
    assert [f"head {n} alone" in names for n in range(1, 6)] == [True] * 4 + [False]
    for head in range(4):

        def keep(layer: CrossAttention, weight: Tensor, head: int = head) -> None:
            others = torch.arange(layer.heads) != head
            weight.unflatten(1, (layer.heads, -1))[:, others] = 0

        ours = call(pipe.unet, at_sites(one_head(head), reads_text).at(STEP))
        torch.testing.assert_close(ours, call(without(pipe.unet, keep)), rtol=1e-5, atol=1e-6)
        assert (ours - whole).abs().max() > 1e-3


@pytest.mark.parametrize("backend", ["reference", "sdpa", "chunked"])
def test_blanked_keys_and_values_against_the_map(backend: str) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, dtype=torch.float64) for n in (15, 6, 6))
    marked = torch.tensor([[0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0]], dtype=torch.bool)
    attend = make_attend(backend)
    p = attention_map(q, k)
    given = p.masked_fill(marked[:, None, None], 0) @ v
    ours = blank_values(marked)(CROSS, (3, 5), q, k, v, attend)
    torch.testing.assert_close(ours, given, rtol=0, atol=1e-12)
    scores = (q @ k.transpose(-2, -1) / 8**0.5).masked_fill(marked[:, None, None], 0)
    ours = blank_keys(marked)(CROSS, (3, 5), q, k, v, attend)
    torch.testing.assert_close(ours, scores.softmax(dim=-1) @ v, rtol=0, atol=1e-12)


def test_what_is_blanked_of_the_text(pipe: TextToImage) -> None:
    tokens = pipe.tokenizer(PROMPTS)
    last = [spans[-1].positions.stop - 1 for spans in tokens.spans]
    positions = {  # start is 0; "tree" is three tokens
        "the noun": [[3], [2]],
        "the colour": [[2], [5, 6]],
        "all words": [list(range(1, n + 1)) for n in last],
        "end and padding": [list(range(n + 1, 77)) for n in last],
    }
    blanked = {
        f"{kind}{'s' if ' and ' in what or 'all' in what else ''} of {what} blanked": (kind, found)
        for what, found in positions.items()
        for kind in ("key", "value")
    }
    chosen = [ablation for ablation in of_the_text(pipe) if "blanked" in ablation.name]
    assert len(chosen) == 6
    k = v = torch.ones(2, 1, 77, 4)
    for ablation in chosen:
        kind, found = blanked[ablation.name]
        seen = {}

        attend = Sees(seen)
        control = ablation.control(tokens, CASES)
        assert control is not None
        control = as_run_control(control).at(STEP)
        assert control is not None
        control(CROSS, (1, 1), k, k, v, attend)
        other = {"key": "value", "value": "key"}[kind]
        assert seen[other].all()
        for row, expected in zip(seen[kind], found, strict=True):
            assert (row[0, :, 0] == 0).nonzero().flatten().tolist() == expected
        control(Site("mid", 0, kind="self"), (1, 1), k, k, v, attend)
        assert seen["key"].all() and seen["value"].all()


def test_positions_are_taken_from_a_copy(pipe: TextToImage) -> None:
    assert pipe.text_encoder is not None and pipe.tokenizer is not None
    again = torch.full((1, 9), int(pipe.tokenizer(PROMPTS).ids[0, 3]))
    before = pipe.text_encoder(again).last_hidden_state
    bare = with_positions(pipe, torch.zeros_like)
    assert bare.unet is pipe.unet and bare.text_encoder is not pipe.text_encoder
    # Without positions, a word said nine times is nine times the same.
    assert bare.text_encoder is not None
    found = bare.text_encoder(again).last_hidden_state
    torch.testing.assert_close(found, found[:, :1].expand_as(found), rtol=1e-4, atol=1e-5)
    assert (before - before[:, :1]).abs().max() > 0.1
    assert torch.equal(pipe.text_encoder(again).last_hidden_state, before)
    rows = torch.arange(12.0)[:, None]
    assert shuffle(rows).flatten().tolist() != list(range(12)) == sorted(shuffle(rows).flatten())
    assert torch.equal(shuffle(rows), shuffle(rows))


def test_positions_of_both_text_encoders_of_sdxl(sdxl_folder: Path) -> None:
    pipe = TextToImage.from_pretrained(sdxl_folder)
    bare = with_positions(pipe, torch.zeros_like)
    for (_, encoder), (_, copied) in zip(pipe.readers, bare.readers, strict=True):
        name = "text_model.embeddings.position_embedding.weight"
        assert encoder.state_dict()[name].any() and not copied.state_dict()[name].any()


def test_pictures_change_and_case_i_is_painted_with_seed_plus_i(pipe: TextToImage) -> None:
    taken = [*of_the_network(pipe, guided=True), *of_the_text(pipe)]
    how = {"batch": 2, "choices": CHOICES}
    whole = paint(Ablation("nothing removed", pipe), CASES, 5, **how)
    assert close(whole[1], pipe(PROMPTS[1], seed=6, **CHOICES).images[0])
    for ablation in taken:
        images = paint(ablation, CASES, 5, **how)
        assert all(not close(*pair) for pair in zip(images, whole, strict=True))
        if ablation in (taken[0], taken[-1]):
            alone = paint(ablation, CASES, 5, batch=1, choices=CHOICES)
            assert close(images[1], alone[1]), ablation.name


def test_what_is_not_there_is_refused(pipe: TextToImage) -> None:
    with pytest.raises(UsageError, match=r"(?s)no grid of 16 x 16.*8 x 8, 4 x 4"):
        at_grid(off, pipe, (16, 16))
    with pytest.raises(UsageError, match=r"(?s)'foxes' are not in the prompt.*Did you mean 'fox'"):
        mark(pipe.tokenizer(PROMPTS), ["foxes", "cat"])


# --- figures and the command ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> DataSettings:
    folder = tmp_path_factory.mktemp("drawings")
    random = np.random.default_rng(0)
    concepts = {name: name for name in ("fox", "cat", "tree", "red apple")}
    settings = DataSettings(
        concepts=concepts,
        styles={"noto": "noto"},
        held_out_combinations=[],
        held_out_pairs_share=0.0,
        folder=str(folder),
    )
    pictures = {
        f"noto/{name}": random.integers(0, 256, (128, 128, 4)).astype(np.uint8) for name in concepts
    }
    save_file(pictures, folder / "drawings.safetensors")
    return settings


def test_prompts_of_the_measurement(settings: DataSettings) -> None:
    prompts = choose_prompts(settings, 40, 0)
    assert len(prompts) == 40 and sum(bool(p.relation) for p in prompts) == 20
    assert prompts == choose_prompts(settings, 40, 0) != choose_prompts(settings, 40, 1)
    assert any("red apple" in p.concepts for p in prompts)
    for prompt in prompts:
        assert prompt.text.split().count(prompt.background.split()[-1]) == 1


def test_figures_are_those_of_each_ablation(pipe: TextToImage, settings: DataSettings) -> None:
    judge = Judge(load(settings), settings.backgrounds, settings.image_size)
    prompts = choose_prompts(settings, 6, 0)
    black = at_sites(lambda site, grid, q, k, v, attend: attend(q, k, 50 * v), reads_text)
    chosen = [Ablation("whole", pipe), Ablation("broken", pipe, lambda tokens, cases: black)]
    rows = measure(chosen, prompts, judge, seed=0, batch=4, choices={**CHOICES, "steps": 1})
    assert list(rows) == ["whole", "broken", "floor: shuffled prompts"]
    assert all(row["both objects"][1] == 3 and set(row) == set(MEASURES) for row in rows.values())
    assert all(row["background"][1] == 6 for row in rows.values())


def test_the_command(
    pipe: TextToImage, settings: DataSettings, sd_folder: Path, tmp_path: Path
) -> None:
    data, page, out = tmp_path / "data.yaml", tmp_path / "page.md", tmp_path / "out"
    data.write_text(yaml.safe_dump(settings.model_dump(mode="json")), "utf-8")
    page.write_text("before\n<!-- table: how -->\nold\n<!-- end of table -->\nafter\n", "utf-8")
    common = ["--model", str(sd_folder), "--data", str(data), "--out", str(out), "--steps", "1"]
    given = ["--prompt", PROMPTS[0], "fox", "red", "--prompts", "4", "--page", str(page)]
    ablations.run(ablations._parser().parse_args([*common, *given]))
    names = ["nothing removed"] + [a.name for a in of_the_network(pipe, True) + of_the_text(pipe)]
    result = json.loads((out / "ablations.json").read_text("utf-8"))
    assert list(result["rows"]) == [*names, "floor: shuffled prompts"]
    filled = page.read_text("utf-8")
    assert [f"\n| {name} |" in filled for name in result["rows"]] == [True] * len(result["rows"])
    assert filled.startswith("before\n<!-- table: how -->\n4 prompts, 2 of them with two objects")
    assert "(`--prompts 4 --steps 1`):\n\n| pictures |" in filled and "old" not in filled
    assert filled.endswith("|\n<!-- end of table -->\nafter\n")
    sizes = [Image.open(out / f"{name}.png").width for name in ("network", "text")]
    assert sizes[1] - sizes[0] == (len(of_the_text(pipe)) - len(of_the_network(pipe, True))) * 136

    def refused(*arguments: str) -> str:
        with pytest.raises(UsageError) as error:
            ablations.run(ablations._parser().parse_args([*common, *arguments]))
        return str(error.value)

    assert "cannot be painted" in refused("--prompts", "-1")
    assert "nothing to hold" in refused("--prompts", "0", "--page", str(page))
    assert "not in the prompt" in refused("--prompts", "0", "--prompt", "a fox", "cat", "fox")
    # Before anything is painted: the prompt, too, is wrong.
    wrong = ["--prompt", "a fox", "cat", "fox", "--page", str(tmp_path / "missing.md")]
    with pytest.raises(FileError, match="no place"):
        ablations.run(ablations._parser().parse_args([*common, *wrong]))


def test_the_page_shows_what_the_command_makes() -> None:
    pipe, text = TextToImage.embedded(), PAGE.read_text("utf-8")
    taken = [*of_the_network(pipe, guided=True), *of_the_text(pipe)]
    rows = [line.split(" |")[0] for line in text.splitlines() if line.startswith("| ")][1:]
    names = ["nothing removed", *(ablation.name for ablation in taken), "floor: shuffled prompts"]
    assert rows == [f"| {name}" for name in names]
