"""The pages that move: in Chromium with keys and mouse, in the dark, at 400 px, without scripts."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch

from docs.book.alive import FOLDER, PAGE
from docs.book.drawing import alike_pages
from docs.book.source import HAN, LANGUAGES
from tests.browser import Browser

READY = "document.readyState === 'complete'"


def text_of(name: str, language: str = "en") -> str:
    return (FOLDER / f"{name}.{language}.html").read_text("utf-8")


def data_of(name: str, language: str = "en") -> Any:
    return json.loads(re.findall(r'id="data">([^<]*)<', text_of(name, language))[0])


def opened(browser: Browser, name: str, language: str = "en", *, narrow: bool = False) -> None:
    browser.said.clear()
    url = (FOLDER / f"{name}.{language}.html").resolve().as_uri()
    browser.open(url, 400 if narrow else 1000, 900, dark=narrow, ready=READY)


def shown(browser: Browser) -> str:
    return browser.run("document.getElementById('live').innerText")


def pressed(browser: Browser, key: str, selector: str) -> None:
    browser.run(f"document.querySelector({json.dumps(selector)}).focus()")
    browser.key(key)


@pytest.mark.parametrize("name", PAGE)
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_page_is_whole_on_a_small_dark_screen(browser: Browser, name: str, language: str) -> None:
    opened(browser, name, language, narrow=True)
    assert not browser.said
    assert shown(browser).strip()
    assert browser.run("document.documentElement.scrollWidth") <= 400
    dark = browser.run("getComputedStyle(document.body).backgroundColor")
    assert max(int(level) for level in re.findall(r"\d+", dark)) < 60
    nameless = """[...document.querySelectorAll('#live button, #live input')].filter(
        e => !e.innerText && !e.ariaLabel && !e.closest('label')).length"""
    assert browser.run(nameless) == 0


@pytest.mark.parametrize("name", PAGE)
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_page_is_a_table_without_scripts(name: str, language: str) -> None:
    text = text_of(name, language)
    assert len(text) < 200_000 and "http" not in re.sub(r'http-equiv="[^"]*"', "", text)
    assert '<details id="still" open>' in text and '<section id="live"' in text
    assert len(re.findall("<tr>", text)) >= 4
    assert language == "en" or HAN.search(re.findall("<h1>(.*)</h1>", text)[0])


@pytest.mark.parametrize("name", PAGE)
def test_what_is_said_in_chinese_has_no_english(name: str) -> None:
    known = {"token", "float", "bfloat", "UNet", "down"}  # names in code
    text = re.sub(r"<(script|style).*?</\1>", "", text_of(name, "zh"), flags=re.S)
    said = [re.sub("<[^>]*>", " ", text), *data_of(name, "zh")["words"].values()]
    words = " ".join(re.sub(r"\{\w+\}", "", each) for each in said)
    # The letters of page 8 are no words.
    english = {word for word in re.findall(r"[A-Za-z]{4,}", words) if set(word) - set("abcdef")}
    assert english <= known | {"English"}, english


def test_numbers_by_hand(browser: Browser) -> None:
    opened(browser, "hand")
    data = data_of("hand")
    browser.run(
        """(field => { field.value = 3; field.dispatchEvent(new Event("input")); })
        (document.querySelector("input[type=number]"))"""
    )
    q = torch.tensor([3, *data["q"][1:]])
    weights = (torch.tensor(data["k"]) @ q / len(q) ** 0.5).softmax(0)
    for weight in weights.tolist():
        assert f"{100 * weight:.1f} %" in shown(browser)
    out = weights @ torch.tensor(data["v"])
    assert f"({float(out[0]):.2f}".rstrip("0") in shown(browser)


def test_steps_by_the_arrow_key(browser: Browser) -> None:
    opened(browser, "steps")
    frames = data_of("steps")["frames"]
    pressed(browser, "ArrowRight", "input[type=range]")
    source = "document.querySelector('#live figure img').src"
    assert browser.run(source) == frames[1]["latents"]
    assert "2" in browser.run("document.querySelector('output').innerText")


def test_a_row_of_the_matrix_and_the_mask(browser: Browser) -> None:
    opened(browser, "matrix")
    tokens = data_of("matrix")["tokens"]
    pressed(browser, "Home", "tr[tabindex='0']")  # no key of the table
    browser.run(
        """document.activeElement.dispatchEvent(
        new KeyboardEvent("keydown", {key: "ArrowUp", bubbles: true, cancelable: true}))"""
    )
    assert f"“{tokens[-2]}” reads" in shown(browser)
    chosen = browser.run("document.activeElement.innerText")
    assert chosen.startswith(tokens[-2])
    first = "document.querySelector('table.grid td').innerText"
    assert browser.run(first) == "100"  # the first token can read itself alone
    browser.run("document.querySelectorAll('input[type=checkbox]')[1].click()")
    assert browser.run(first) != "100"


def test_rows_of_every_head_add_up() -> None:
    data = data_of("matrix")
    length = len(data["tokens"])
    for case in data["cases"]:
        for head in (head for layer in case for head in layer):
            weights = torch.tensor(head["weights"]).view(length, length)
            assert (weights.sum(1) - 100).abs().max() <= length / 2  # each is rounded


def test_a_place_and_a_word(browser: Browser) -> None:
    opened(browser, "places")
    data = data_of("places")
    pressed(browser, "ArrowDown", ".places button[tabindex='0']")
    place = data["place"] + data["grid"][1]
    share = data["maps"][0][place] / 10
    assert f"{share:.1f} %" in browser.run("document.querySelector('.bar').innerText")
    browser.click("fieldset button:nth-of-type(3)")
    word = data["tokens"][2]
    assert f"“{word}”" in browser.run("document.querySelector('figcaption').innerText")
    colored = """[...document.querySelectorAll('.places button')].filter(
        square => square.style.background.includes('rgb')).length"""
    assert browser.run(colored) > 0
    browser.click("fieldset button:nth-of-type(3)")
    assert browser.run(colored) == 0


def test_a_block_is_cut_and_mended(browser: Browser) -> None:
    opened(browser, "unet")
    pictures = data_of("unet")["pictures"]
    source = "document.querySelector('#live figure img').src"
    assert browser.run(source) == pictures[""]["picture"]
    browser.click(".map .reads")
    cut = next(block["cut"] for block in data_of("unet")["blocks"] if block["cut"])
    assert browser.run(source) == pictures[cut]["picture"]
    assert f"moved by {pictures[cut]['by']} of 255" in shown(browser)
    browser.click(".map .reads")
    assert browser.run(source) == pictures[""]["picture"]
    browser.click("#all")
    assert browser.run(source) == pictures["all"]["picture"]


def test_scores_grow_with_the_square(browser: Browser) -> None:
    opened(browser, "cost")

    def megabytes() -> float:
        size, unit = re.findall(r"([\d.]+) ([kMG])B", shown(browser))[0]
        return float(size) * {"k": 1e-3, "M": 1, "G": 1e3}[unit]

    before = megabytes()
    assert before == pytest.approx(8 * 4096**2 * 4 / 1e6, rel=0.01)
    pressed(browser, "ArrowRight", "input[type=range]")
    assert megabytes() == pytest.approx(4 * before, rel=0.05)


def test_fewer_beams_and_what_follows(browser: Browser) -> None:
    opened(browser, "beam")
    data = data_of("beam")
    browser.run(
        """(field => { field.value = 1; field.dispatchEvent(new Event("input")); })
        (document.querySelector("input[type=range]"))"""
    )
    assert browser.run("document.querySelectorAll('.tree button').length") == len(
        data["searches"][0]
    )
    browser.click(".tree ol:nth-child(2) button")
    text = data["searches"][0][1][0]["text"]
    assert f"after “{text}”" in shown(browser)
    for chance in data["next"][text]:
        assert f"{chance / 10:.1f} %" in shown(browser)


def test_pages_are_alike_within_a_tolerance() -> None:
    page = text_of("places")
    maps = data_of("places")["maps"][0]
    first = '"maps":[[' + str(maps[0])
    assert first in page and alike_pages(page, page)
    assert alike_pages(page, page.replace(first, f'"maps":[[{maps[0] + 2}'))
    assert not alike_pages(page, page.replace(first, f'"maps":[[{maps[0] + 3}'))
    assert not alike_pages(page, page.replace("<h1>", "<h1>Other: "))
