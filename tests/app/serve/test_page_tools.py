"""Tools of the page in Chromium: boxes, masks, LoRAs, comparing, links, another dialect; touch."""

from __future__ import annotations

import base64
import io

import pytest
import torch
from PIL import Image, ImageChops
from safetensors.torch import save_file

from sdcore import Job, LoraSettings, RegionSettings, Size, TextToImage
from sdcore.app.adapters import Adapters
from sdcore.app.model_choice import ModelChoice
from sdcore.app.model_folders import ModelFolders
from sdcore.app.serve.asked import Door
from sdcore.app.serve.models import Models
from sdcore.app.serve.painter import Painter
from sdcore.app.session import Session, results
from sdcore.job.budget import Budget
from sdcore.job.sources import Picture
from tests.app.serve.conftest import listening
from tests.app.serve.pages import DONE, READY, opened, painted, shown

SIZE = Size(64, 64)


@pytest.fixture(scope="module")
def pipe(sd_folder) -> TextToImage:
    return TextToImage.from_pretrained(sd_folder)


@pytest.mark.slow
def test_a_box_is_dragged_and_holds_what_is_typed(browser, live, pipe) -> None:
    opened(browser, live)
    painted(browser, "paint()")
    browser.click("#box-tool")
    browser.drag("#stage", (0.1, 0.2), (0.5, 0.9))
    assert browser.run("document.activeElement.id") == "region-0"
    browser.ask("Input.insertText", text="a red fox")
    browser.key("Enter")
    browser.wait(DONE.format(2))
    (region,) = browser.run("past[0].job.regions")
    assert region["box"] == pytest.approx([0.1, 0.2, 0.5, 0.9], abs=0.01)
    assert "a1111" in browser.run("$('status').textContent")  # which it turned to
    fox = RegionSettings("a red fox", tuple(region["box"]))
    job = Job("grass", seed=5, steps=2, size=SIZE, dialect="a1111", regions=(fox,))
    assert shown(browser).tobytes() == pipe.paint(job).images[0].tobytes()
    assert browser.run("words.filter(w => w.of === 1).map(w => w.word)") == ["a", "red", "fox"]

    browser.run("$('box-0').focus()")
    browser.key("ArrowRight")
    browser.key("ArrowDown", shift=True)
    browser.wait(DONE.format(3))
    moved = browser.run("past[0].job.regions[0].box")
    left, top, right, bottom = fox.box
    assert moved == pytest.approx([left + 0.02, top, right + 0.02, bottom + 0.02])
    browser.key("Delete")
    browser.wait(DONE.format(4))
    assert browser.run("past[0].job.regions") is None
    browser.run("restore(past[2])")  # with its box
    painted(browser, "paint()")
    assert shown(browser).tobytes() == pipe.paint(job).images[0].tobytes()
    assert browser.said == []


def png(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


@pytest.mark.slow
def test_a_mask_is_painted_and_the_rest_stays_to_the_bit(browser, live, pipe) -> None:
    opened(browser, live)
    painted(browser, "paint()")
    before = shown(browser).convert("RGB")
    browser.click("#mask-tool")
    browser.drag("#stage", (0.2, 0.5), (0.5, 0.5))
    assert browser.run("$('strength').value") == "1"
    mask = png(browser.run("maskPicture()")).convert("L")
    assert mask.size == before.size and 20 < sum(mask.histogram()[1:]) < 2000
    browser.run("$('prompt').value = 'a fox'")
    painted(browser, "paint()")
    job = Job("a fox", seed=5, steps=2, size=SIZE, source=Picture(before, 1.0, mask))
    assert shown(browser).tobytes() == pipe.paint(job).images[0].tobytes()
    changed = ImageChops.difference(shown(browser).convert("RGB"), before).getbbox()
    (left, top, right, bottom), (a, b, c, d) = changed, mask.getbbox()
    assert a - 8 <= left < right <= c + 8 and b - 8 <= top < bottom <= d + 8

    browser.run("restore(past[1])")
    assert not browser.run("hasMask()") and browser.run("source") is None
    browser.run("restore(past[0])")
    browser.wait("hasMask()")
    painted(browser, "paint()")
    assert shown(browser).tobytes() == pipe.paint(job).images[0].tobytes()
    browser.click("#share")
    assert "no pixels" in browser.run("$('status').textContent")

    browser.click("#rub")
    browser.run("$('brush').value = 50")
    browser.drag("#stage", (0.1, 0.5), (0.6, 0.5))
    assert not browser.run("hasMask()")
    browser.run("pins = ['fox']")
    browser.click("#rub")
    browser.click("#of-words")
    assert browser.run("hasMask()")
    browser.click("#forget")
    assert not browser.run("hasMask()") and browser.run("source") is None
    assert browser.said == []


@pytest.mark.slow
def test_a_picture_that_is_dropped_is_painted_over(browser, live, pipe) -> None:
    opened(browser, live)
    file, image = io.BytesIO(), Image.effect_noise((64, 64), 60).convert("RGB")
    image.save(file, "PNG")
    content = base64.b64encode(file.getvalue()).decode()
    browser.run(
        "const dropped = new DataTransfer(); dropped.items.add(new File([Uint8Array.from("
        f"atob('{content}'), c => c.charCodeAt(0))], 'x.png'));"
        "document.dispatchEvent(new DragEvent('drop', {dataTransfer: dropped})); 1"
    )
    browser.wait("source !== null")
    assert "x.png" in browser.run("$('begun-name').textContent")
    painted(browser, "$('strength').value = 0.5; paint()")
    job = Job("grass", seed=5, steps=2, size=SIZE, source=Picture(image, 0.5))
    assert shown(browser).tobytes() == pipe.paint(job).images[0].tobytes()
    (told,) = browser.said  # Chromium itself says that it has no settings to be read
    assert "api/read" in told
    browser.said.clear()


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> Adapters:
    """A LoRA and a learned word in a folder of models."""
    root = tmp_path_factory.mktemp("adapters")
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v"
    generator = torch.Generator().manual_seed(3)
    tensors = {
        f"{layer}.lora_down.weight": torch.randn(2, 32, generator=generator),
        f"{layer}.lora_up.weight": torch.randn(32, 2, generator=generator),
    }
    for kind, name, content in (
        ("loras", "ink", tensors),
        ("embeddings", "mark", {"emb_params": torch.full((2, 32), 3.0)}),
    ):
        (root / kind).mkdir()
        save_file(content, root / kind / f"{name}.safetensors")
    return Adapters(
        folders=ModelFolders({kind: (root / kind,) for kind in ("loras", "embeddings")})
    )


@pytest.mark.slow
def test_loras_learned_words_an_interval_and_several_pictures(browser, sd_folder, adapters) -> None:
    session = Session(ModelChoice(str(sd_folder)), adapters)

    def expected(job: Job) -> bytes:
        (result,) = results(session.paint([job]), shown=False)
        return result.images[0].tobytes()

    models = Models(ModelChoice(str(sd_folder)), adapters)
    with listening(Door(models, Budget(images=8)), Painter(models)) as live:
        opened(browser, live)
        browser.run("$('more').open = true")
        plain = Job("grass", seed=5, steps=2, size=SIZE)
        browser.run("$('lora').value = 'ink'; $('lora').dispatchEvent(new Event('change'))")
        browser.run("loras[0].unet = loras[0].text = 0.5; showLoras()")
        painted(browser, "paint()")
        inked = plain.changed(loras=(LoraSettings("ink", 0.5, 0.5),))
        assert shown(browser).tobytes() == expected(inked) != expected(plain)

        browser.click("#loras button")
        assert browser.run("loras.length") == 0
        browser.run("$('embedding').value = 'mark'")
        browser.run("$('embedding').dispatchEvent(new Event('change')); $('counts').value = 1.2")
        browser.run("$('prompt').setSelectionRange(5, 5)")
        browser.click("#put")
        assert browser.run("$('prompt').value.trim()") == "grass (mark:1.2)"
        assert browser.run("$('dialect').value") == "a1111"  # which calls it by its name
        painted(browser, "paint()")
        learned = plain.changed(prompt="grass (mark:1.2)", dialect="a1111")
        assert shown(browser).tobytes() == expected(learned)
        assert browser.run("past[0].job.embeddings[0].name") == "mark"

        browser.run("$('prompt').value = 'grass <lora:ink:0.5>'")  # as the dialect names one
        painted(browser, "paint()")
        assert browser.run("past[0].job.loras[0].unet") == 0.5
        browser.run("restore(past[0])")
        painted(browser, "paint()")
        assert browser.run("past[0].png === past[1].png && past[0].job.loras.length === 1")

        browser.run("loras = []; $('prompt').value = 'grass'; $('dialect').value = 'plain'")
        browser.run("$('guided-from').value = 0.2; $('guided-to').value = 0.9")
        browser.run("$('images').value = 2; paint(); 1")
        browser.wait(DONE.format(6))
        second = plain.changed(seed=6, guidance_interval=(0.2, 0.9))
        assert shown(browser).tobytes() == expected(second)
        browser.run("restore(past[0])")
        assert browser.run("$('guided-to').value") == "0.9"
    assert browser.said == []


@pytest.mark.slow
def test_two_runs_are_compared_and_one_becomes_a_link(browser, live, pipe) -> None:
    opened(browser, live)
    browser.run("$('prompt').value = 'a red fox'")
    painted(browser, "paint()")
    painted(browser, "scales = {fox: 2}; paint(true)")
    steered = browser.run("past[0].png")
    browser.click("#history li:last-child div button")
    assert browser.run("other === past[1]") and not browser.run("$('other').hidden")
    browser.run("$('split').focus()")
    browser.key("ArrowRight")
    assert browser.run("getComputedStyle($('other')).clipPath").endswith("51%)")
    rows = browser.run("$('differences').tBodies[0].textContent")
    assert '"fox":2' in rows and "“fox”" in rows
    browser.click("#beside")
    assert browser.run("$('stage').clientWidth / $('stage').clientHeight") == pytest.approx(2, 0.02)
    browser.click("#no-other")
    assert browser.run("$('other').hidden")

    browser.click("#share")
    link = browser.run("$('link').value")
    assert link.startswith(f"{live.url}/#run=")
    browser.run("localStorage.clear()")
    browser.open(link, 1200, 900, ready=READY)
    assert browser.run("[past.length, $('prompt').value, location.hash]") == [0, "a red fox", ""]
    browser.run("localStorage.clear()")
    painted(browser, "paint()")
    assert browser.run("past[0].png") == steered
    browser.run("localStorage.clear()")
    browser.open(link, 1200, 900, ready=READY)
    browser.run("$('prompt').value = '红色的狐狸'; $('form').dispatchEvent(new Event('input'))")
    painted(browser, "paint()")  # what was changed is painted, not what the link said
    assert browser.run("past[0].prompt") == "红色的狐狸"
    assert browser.run("fromLink(asLink(current.asked).split('=')[1]).job.prompt") == "红色的狐狸"
    for wrong in ("abc", "e30", "%00"):
        browser.open(f"{live.url}/#run={wrong}", 1200, 900, ready=READY)
        assert browser.run("$('status').textContent") == "The link cannot be read."
    assert browser.said == []


@pytest.mark.slow
def test_the_same_job_in_another_dialect_is_shown_beside_it(browser, live, pipe) -> None:
    opened(browser, live)
    browser.run("$('prompt').value = 'a (red:1.5) fox'; $('dialect').value = 'a1111'")
    browser.run("$('other-dialect').value = 'comfy'; paint(); 1")
    browser.wait("other !== null && running === null")
    for run, dialect in (("current", "a1111"), ("other", "comfy")):
        job = Job("a (red:1.5) fox", seed=5, steps=2, size=SIZE, dialect=dialect)
        assert png(browser.run(f"{run}.png")).tobytes() == pipe.paint(job).images[0].tobytes()
    assert browser.run("$('stage').classList.contains('beside')")
    assert "dialect" in browser.run("$('differences').textContent")


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_a_finger_draws_and_every_part_fits_and_has_a_name(browser, live, dark) -> None:
    opened(browser, live, 400, 800, dark=dark)
    painted(browser, "paint()")
    painted(browser, "paint()")
    browser.run("$('more').open = true; compare(past[1])")
    browser.click("#box-tool")
    browser.touch("#stage", (0.1, 0.1), (0.6, 0.6))
    assert browser.run("regions.length") == 1
    browser.run("document.activeElement.blur()")
    browser.click("#mask-tool")
    browser.touch("#stage", (0.7, 0.7), (0.9, 0.9))
    assert browser.run("hasMask()")
    browser.run(
        "loras = [{name: 'ink', unet: 1, text: 1}]; showLoras(); $('learned').hidden = false"
    )
    browser.run("rest = {clip_skip: 1}; showKept(); $('link-shown').hidden = false")
    for language in ("zh", "en"):
        browser.run(f"speak('{language}')")
        assert browser.run("document.documentElement.scrollWidth") == 400
        unnamed = (
            "[...document.querySelectorAll('button, input, select, textarea, [tabindex]')].filter("
            "each => !each.labels?.length && !each.textContent && !each.getAttribute('aria-label'))"
            ".map(each => each.outerHTML)"
        )
        assert browser.run(unnamed) == []
    small = (
        "[...document.querySelectorAll('button')].filter(each => each.offsetParent && "
        "each.offsetHeight < 32).map(each => each.outerHTML)"
    )
    assert browser.run(small) == []
    contrast = "[...'color backgroundColor'.split(' ')].map(n => getComputedStyle($('link'))[n])"
    assert len(set(browser.run(contrast))) == 2


@pytest.mark.slow
def test_a_box_comes_and_goes_by_keys_alone(browser, live) -> None:
    opened(browser, live)
    browser.run("$('box-tool').focus()")
    browser.key("Enter")
    assert browser.run("[regions.length, document.activeElement.id]") == [1, "region-0"]
    browser.run("$('box-0').focus()")
    browser.key("Delete")
    assert browser.run("[regions.length, document.activeElement.id]") == [0, "box-tool"]


@pytest.mark.slow
def test_what_a_picture_says_beyond_the_form_is_kept(browser, live, pipe) -> None:
    job = Job("a fox", seed=7, steps=2, size=SIZE, clip_skip=1, guidance_rescale=0.5)
    opened(browser, live)
    from sdcore.job.record import job_to_dict

    browser.run(f"fill({job_to_dict(job)!r})".replace("None", "null").replace("False", "false"))
    assert "clip skip 1" in browser.run("$('kept-names').textContent")
    painted(browser, "paint()")
    assert shown(browser).tobytes() == pipe.paint(job).images[0].tobytes()
    browser.run("$('seed').value = '9223372036854775807'")  # more digits than a script's number
    painted(browser, "paint()")
    largest = job.changed(seed=2**63 - 1)
    assert shown(browser).tobytes() == pipe.paint(largest).images[0].tobytes()
    browser.run("restore(past[0])")
    assert browser.run("$('seed').value") == str(2**63 - 1)
    browser.run("$('seed').value = 7; $('more').open = true")
    browser.click("#let-go")
    painted(browser, "paint()")
    plain = Job("a fox", seed=7, steps=2, size=SIZE)
    assert shown(browser).tobytes() == pipe.paint(plain).images[0].tobytes()
