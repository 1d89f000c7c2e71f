"""The page: what it is made of, and what it does in Chromium with mouse and keys."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sdcore import Job, TextToImage
from sdcore.files.html_page import fill_template
from tests.app.serve.pages import DONE, READY, shown
from tests.browser import start_browser

PAGE = Path(__file__).parents[3] / "sdcore" / "app" / "serve" / "page" / "page.html"


def test_the_page_is_small_and_asks_no_other_host(ask) -> None:
    text = ask.get("/").text
    assert len(text.encode()) < 300_000
    assert "://" not in text
    assert "default-src 'none'; connect-src 'self'" in text and "{{" not in text
    assert not re.findall(r"\son\w+=", text)  # nothing that its own policy would stop


def test_every_text_of_the_page_is_there_in_both_languages() -> None:
    text = fill_template(PAGE, {})
    used = set(re.findall(r'data-say(?:-label)?="([\w-]+)"', text))
    (chinese,) = re.findall(r"  zh: \{\n((?:    .*\n)+?)  \},\n\};\nconst SAID", text)
    assert set(re.findall(r"\"?([\w-]+)\"?: \"", chinese)) == used
    both = re.findall(r"  (?:en|zh): \{\n((?:    \w+: .*\n)+?)  \},", text)[-2:]
    names = [set(re.findall(r"(\w+): (?:\"|\w+ =>|\()", each)) for each in both]
    assert names[0] == names[1] and "weight" in names[0]
    assert set(re.findall(r'say\("(\w+)"\)', text)) <= names[0]


@pytest.mark.slow
def test_words_are_seen_reweighted_and_changed_with_the_mouse(browser, live, sd_folder) -> None:
    browser.open(live.url, 1280, 900, ready=READY)
    assert browser.run("document.activeElement.id") == "prompt"
    browser.run("$('seed').value = 5; $('steps').value = 4; localStorage.clear()")
    browser.ask("Input.insertText", text="a red fox on a tree")
    browser.key("Enter")
    browser.wait(DONE.format(1))
    job = Job("a red fox on a tree", seed=5, steps=4)
    expected = TextToImage.from_pretrained(sd_folder).paint(job).images[0]
    assert shown(browser).tobytes() == expected.tobytes()
    words = "[...document.querySelectorAll('#chips .word')].map(each => each.textContent)"
    assert browser.run(words) == job.prompt.split()
    assert len(browser.run("[...document.querySelectorAll('#special .word')].map(_ => 1)")) == 2

    fox = '.word[data-index="4"]'
    assert browser.run("pins") == ["fox", "tree"]  # at first sight
    browser.key("Escape")
    assert browser.run("$('map').hidden")
    browser.mouse("mouseMoved", *browser.middle(fox))
    assert not browser.run("$('map').hidden")
    browser.click(fox)
    assert browser.run("pins") == ["fox"]
    browser.mouse("mouseWheel", *browser.middle(fox), deltaX=0, deltaY=-100)
    browser.wait("scales.fox === 1.25")
    browser.wait(DONE.format(2))
    assert shown(browser).tobytes() != expected.tobytes()
    assert "control" in json.loads(shown(browser).info["sdcore"])["beyond"]

    browser.click(fox, count=2)
    browser.wait("document.querySelector('.edit') !== null")
    browser.ask("Input.insertText", text="cat")
    browser.key("Enter")
    browser.wait(DONE.format(3))
    assert browser.run(words)[2] == "cat"
    assert browser.run("$('prompt').value") == "a red cat on a tree"
    browser.click("#history li:last-child .again")
    assert shown(browser).tobytes() == expected.tobytes()
    browser.click("#history .star")
    browser.open(live.url, 1280, 900, ready=READY)  # the history is kept
    assert browser.run("past.length") == 3 and browser.run("past[0].star")
    assert browser.said == []


@pytest.mark.slow
def test_a_changed_word_is_seen_as_a_draft_and_typing_is_left_alone(browser, live) -> None:
    browser.open(live.url, 1000, 800, ready=READY)
    browser.run("localStorage.clear(); past = []; speak('en')")
    browser.run("$('seed').value = 5; $('steps').value = 2; $('prompt').value = 'a fox on a tree'")
    browser.run("paint(); 1")
    browser.wait(DONE.format(1))
    browser.run("$('steps').value = 60")
    browser.mouse("mouseWheel", *browser.middle('.word[data-index="3"]'), deltaX=0, deltaY=-100)
    browser.wait("$('status').textContent.startsWith('step') && current !== past[0]")
    assert browser.run("past.length") == 1 and browser.run("$('save').hidden")
    assert browser.run("words.length") == 7 and browser.run("!$('map').hidden")
    pinned = browser.run("pins")
    browser.click('.word[data-index="6"]', count=2)
    browser.wait("document.querySelector('.edit') !== null")
    assert browser.run("pins") == pinned == ["fox", "tree"]
    browser.ask("Input.insertText", text="hous")
    browser.wait(DONE.format(2))  # the picture comes meanwhile
    browser.ask("Input.insertText", text="e")
    browser.run("$('steps').value = 4")
    browser.key("Enter")
    browser.wait(DONE.format(3))
    assert browser.run("$('prompt').value") == "a fox on a house"
    assert not browser.run("$('save').hidden") and browser.run("current === past[0]")
    assert browser.said == []


@pytest.mark.slow
def test_keys_a_narrow_dark_screen_and_chinese(browser, live, tmp_path) -> None:
    browser.open(live.url, 400, 800, dark=True, ready=READY)
    browser.run("localStorage.clear(); past = []; speak('zh'); $('steps').value = 3")
    browser.run("$('prompt').value = 'a dog'; $('prompt').focus()")
    browser.key("Enter")
    browser.wait(DONE.format(1))
    assert browser.run("document.documentElement.scrollWidth") == 400
    assert browser.run("document.documentElement.lang") == "zh"
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    browser.run("document.querySelector('#chips .word').focus()")
    browser.key("ArrowRight")
    assert browser.run("document.activeElement.firstChild.textContent") == "dog"
    pressed = "document.activeElement.getAttribute('aria-pressed')"
    assert browser.run(pressed) == "true"  # nouns are pinned at first sight
    browser.key("Enter")
    assert browser.run(pressed) == "false"
    browser.key("Enter")
    assert browser.run(pressed) == "true"
    browser.key("Escape")
    assert browser.run("pins") == []
    unnamed = (
        "[...document.querySelectorAll('button, input, select, textarea')].filter(each => "
        "!each.labels?.length && !each.textContent && !each.getAttribute('aria-label')).length"
    )
    assert browser.run(unnamed) == 0
    assert browser.said == []


@pytest.mark.slow
def test_a_picture_is_read_and_errors_and_a_stop_are_told(browser, live, sd_folder) -> None:
    browser.open(live.url, 1000, 800, ready=READY)
    browser.run("localStorage.clear(); past = []; speak('en')")
    result = TextToImage.from_pretrained(sd_folder).paint(Job("a small tree", seed=8, steps=2))
    from sdcore.metadata.png import write_png

    file = io.BytesIO()
    write_png(result.images[0], file, result.settings[0])
    data = base64.b64encode(file.getvalue()).decode()
    take = "take(new File([Uint8Array.from(atob('{}'), c => c.charCodeAt(0))], 'x.png'))"
    browser.run(take.format(data))
    assert browser.run("[$('prompt').value, $('seed').value]") == ["a small tree", "8"]
    plain = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(plain, "PNG")
    browser.run(take.format(base64.b64encode(plain.getvalue()).decode()))
    assert browser.run("source.name") == "x.png"
    browser.run("paint()")
    assert browser.run("past[0].job.prompt") == "a small tree"
    browser.run("$('steps').value = 5000; paint()")
    browser.wait("$('status').classList.contains('bad')")
    said = browser.run("$('status').textContent")
    assert said.startswith("The run asks for 5,000 steps. ") and "sdcore.Job" not in said
    browser.run("$('steps').value = 900; paint(); 1")
    browser.wait("task !== null")
    browser.run("stop()")
    browser.run("$('steps').value = 2; paint()")
    assert browser.run("past.length") == 2


@pytest.mark.slow
def test_two_tabs_and_a_server_that_ends_in_the_middle(browser, sd_folder, tmp_path) -> None:
    command = [sys.executable, "-m", "sdcore", "serve", "--model", str(sd_folder), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        other = start_browser(tmp_path)
        for each in (browser, other):
            each.open(url, 1000, 800, ready=READY)
            each.run("$('steps').value = 900; $('prompt').value = 'a dog'; paint(); 1")
        browser.wait("$('status').textContent.includes('step')")
        other.wait("task !== null")
        assert "1" in other.run("$('status').textContent")  # one is before it
        server.kill()
        for each in (browser, other):
            each.wait("$('status').textContent === 'The server does not answer.'")
        other.close()
    finally:
        server.kill()
        server.wait()
