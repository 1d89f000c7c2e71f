"""The command that explains: the page, the grid, what is refused. A browser looks, too."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdcore import TextToImage
from sdcore.app import explain
from sdcore.app.explain_page import fill_page, page_data
from sdcore.app.explain_record import Block, Explained, Recording, Window, Word, explain_run
from sdcore.control.heatmaps import WordHeatmaps
from sdcore.diffusion.schedulers import make_scheduler, set_steps
from sdcore.image.pictures import to_images
from tests.painting import paint

HOSTILE = (
    'a fox </script><script>alert(1)</script> "><img src=x onerror=alert(2)> <!-- &lt; {{data}}'
)
PROMPT = "a fox on the small tree, in red"
NOUNS = ["fox", "tree"]


class Page(HTMLParser):
    """The tags of a page with their attributes, and all texts by their tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)
        self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]][-1] += data

    @property
    def data(self) -> dict:
        (number,) = [
            i
            for i, (_, given) in enumerate(t for t in self.tags if t[0] == "script")
            if given.get("type") == "application/json"
        ]
        return json.loads(self.texts["script"][number])


@pytest.fixture
def run(sd_folder, tmp_path, monkeypatch, capsys):
    """Run the command in an empty folder; gives exit code, printed paths and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, model: Path | str = sd_folder) -> tuple[int, list[Path], str]:
        painting = [] if "--image" in arguments else ["--steps", "4"]
        code = explain.main([*arguments, "--model", str(model), "--seed", "5", *painting])
        captured = capsys.readouterr()
        return code, [Path(line) for line in captured.out.splitlines()], captured.err

    return call


@pytest.fixture(scope="module")
def explained(sd_folder) -> tuple[Explained, WordHeatmaps, WordHeatmaps]:
    """A run of 6 steps in 3 windows, and the heatmaps that recorded it."""
    pipe = TextToImage.from_pretrained(sd_folder)
    recording = Recording(pipe, PROMPT, "bad drawing", "plain", 3)
    result = pipe(PROMPT, negative_prompt="bad drawing", seed=5, steps=6, control=recording)
    facts = {"prompt": PROMPT, "negative prompt": "bad drawing", "dialect": "plain", "seed": 5}
    assert recording.negative is not None
    made = explain_run(pipe, recording, result.images[0], facts)
    return made, recording.made, recording.negative.made


def unpack(data: dict) -> list[np.ndarray]:
    """The maps of a page, by window, block and word, each (h, w)."""
    levels = np.frombuffer(zlib.decompress(base64.b64decode(data["maps"])), np.uint8)
    ranges, found, at = np.array(data["ranges"]).reshape(-1, 2), [], 0
    for _ in data["windows"]:
        for block in data["blocks"]:
            for _ in data["words"]:
                h, w = block["grid"]
                low, high = ranges[len(found)]
                one = np.cumsum(levels[at : at + h * w], dtype=np.uint8).reshape(h, w)
                found.append(low + one * ((high - low) / 255))
                at += h * w
    assert at == len(levels)
    return found


def test_maps_in_the_page_are_those_of_the_heatmaps(explained) -> None:
    made, prompt, negative = explained
    assert [window.steps for window in made.windows] == [3, 2, 2], "PLMS calls the UNet once more"
    data = json.loads(json.dumps(page_data(made)))
    maps = iter(unpack(data))
    shares = iter(data["shares"])
    for window in range(3):
        steps = (window / 3, (window + 1) / 3)
        for block in made.blocks:

            def chosen(site, block=block) -> bool:
                return (site.place, site.level) == (block.place, block.level)

            for one in (prompt, negative):
                for want in one.maps(steps=steps, sites=chosen):
                    got, spread = next(maps), float(want.max() - want.min())
                    assert got.shape == want.shape == block.grid
                    assert np.abs(got - want.numpy()).max() <= spread / 500 + 1e-6
                    assert next(shares) == pytest.approx(float(want.mean()), rel=1e-4)
    assert next(maps, None) is None


def test_means_of_the_maps_are_those_of_the_heatmaps(explained) -> None:
    made, prompt, negative = explained
    words = len(prompt.spans()) + 2
    for column, word in enumerate(made.words):
        one, place = (prompt, column) if word.of == "prompt" else (negative, column - words)
        torch.testing.assert_close(made.map_of(column), one.maps()[place], atol=1e-6, rtol=1e-5)
        late = one.maps(steps=(2 / 3, 1))[place]
        torch.testing.assert_close(made.map_of(column, [2]), late, atol=1e-6, rtol=1e-5)
    fox = made.words[2 + 1]
    assert fox.name == "fox" and fox.share == prompt.share()[1].share


def test_picture_is_the_same_with_and_without_a_page(sd_folder, explained) -> None:
    plain = TextToImage.from_pretrained(sd_folder)(
        PROMPT, negative_prompt="bad drawing", seed=5, steps=6
    )
    assert plain.images[0].tobytes() == explained[0].picture.tobytes()
    assert explained[0].windows[-1].picture is explained[0].picture
    assert explained[0].windows[0].picture.tobytes() != plain.images[0].tobytes()


def test_every_word_is_a_button_and_stands_in_its_prompt(run) -> None:
    code, (path,), err = run(PROMPT, "--negative-prompt", "bad, drawing", "--windows", "2")
    assert code == 0 and "step 5 of 5" in err
    text = path.read_text("utf-8")
    page = Page(text)
    want = [*re.findall(r"\w+|,", PROMPT), "bad", ",", "drawing"]
    want += ["start", "end and padding"] * 2
    assert page.texts["button"] == want
    buttons = [given for tag, given in page.tags if tag == "button"]
    assert [given["data-column"] for given in buttons] != sorted(range(len(want)))
    columns = [int(given["data-column"] or -1) for given in buttons]
    named = [page.data["words"][column]["name"] for column in columns]
    assert named == want and sorted(columns) == list(range(len(want)))
    paragraph = re.search(r'<p class="text".*?>(.*?)</p>', text, re.DOTALL)
    assert paragraph is not None
    read = html.unescape(re.sub("<.*?>", "", paragraph[1]))
    assert read == PROMPT, "the prompt as it was written"
    parts = re.findall(r"<tbody.*?</tbody>", text, re.DOTALL)
    heads = [re.findall(r'<th scope="row".*?>(.*?)</th>', part) for part in parts]
    assert heads == [want[:-4], want[-4:]], "start and end stand apart"
    assert any("start knows no word" in said for said in page.texts["p"])
    first = [word["name"] for word in page.data["words"] if word["noun"]]
    first = [word for word in first if word not in ("bad", "drawing")]  # of the negative prompt
    assert first == NOUNS
    assert len([1 for tag, given in page.tags if "data-window" in given]) == 2
    assert [window["steps"] for window in page.data["windows"]] == [3, 2]
    assert text.count("<figcaption dir") == len(re.findall(r"\w+", PROMPT)) + 2, "no punctuation"


def test_hostile_prompts_are_text(run) -> None:
    code, (path,), _ = run(HOSTILE, "--negative-prompt", HOSTILE, "--dialect", "a1111")
    assert code == 0
    text = path.read_text("utf-8")
    page = Page(text)
    assert [tag for tag, _ in page.tags if tag == "script"] == ["script"] * 2
    assert not [name for _, given in page.tags for name in given if name.startswith("on")]
    assert {
        str(given["src"])[:11] for tag, given in page.tags if tag == "img" and given.get("src")
    } <= {"data:image/"}
    assert page.texts["title"] == [HOSTILE]
    assert "{{data}}" in html.unescape(page.texts["title"][0]), "what is put in is not filled again"
    for word in ("alert", "img", "onerror", "script"):
        assert word in page.texts["button"]


def test_no_word_ends_the_data() -> None:
    made = synthetic(64, (8, 4), 4)
    word = replace(made.words[3], name="</script ><!-- <script x> -->")
    text = fill_page(replace(made, words=(*made.words[:3], word)))
    assert text.count("</script") == text.count("<script") == 2 and "<!--" not in text
    assert Page(text).data["words"][3]["name"] == word.name


def test_a_page_needs_nothing_else_and_may_do_nothing_else(run) -> None:
    _, (path,), _ = run("a fox")
    text = path.read_text("utf-8")
    page = Page(text)
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttp|WebSocket", text)
    assert not {"link", "iframe", "object", "form", "a"} & {tag for tag, _ in page.tags}
    assert not [given for _, given in page.tags if "style" in given], "the policy forbids them"
    (policy,) = [g["content"] for t, g in page.tags if t == "meta" and "http-equiv" in g]
    assert policy is not None and policy.startswith("default-src 'none';")
    assert "unsafe" not in policy and "img-src data:;" in policy
    for tag in ("script", "style"):
        digest = hashlib.sha256(page.texts[tag][-1].encode()).digest()
        assert f"{tag}-src 'sha256-{base64.b64encode(digest).decode()}'" in policy


def test_what_was_cut_or_is_ignored_is_said(run) -> None:
    code, (path,), _ = run("a fox " + "red " * 90 + "apple")
    page = Page(path.read_text("utf-8"))
    assert code == 0
    buttons = [
        (g, t)
        for (_, g), t in zip(
            [x for x in page.tags if x[0] == "button"], page.texts["button"], strict=True
        )
    ]
    gone = [text for given, text in buttons if "cut" in (given["class"] or "").split()]
    assert gone == ["red"] * (1 + 1 + 90 - 75) + ["apple"]
    assert all(
        g.get("aria-disabled") == "true" for g, _ in buttons if "cut" in (g["class"] or "").split()
    )
    assert any("did not reach it" in text for text in page.texts["li"])

    code, (path,), _ = run("a fox " + "red " * 90 + "apple", "--dialect", "a1111")
    assert code == 0, "a long prompt is read in chunks"
    assert "cut off" not in path.read_text("utf-8")


def test_weights_and_pieces_stand_in_the_table(run) -> None:
    code, (path,), _ = run("a (fox:1.5) and quux", "--dialect", "a1111")
    page = Page(path.read_text("utf-8"))
    assert code == 0 and page.texts["button"][:-2] == ["a", "fox", "and", "quux"]
    assert "weight 1.5" in page.texts["small"]
    assert [code for code in page.texts["code"] if code in "quux"] == ["q", "u", "u", "x"]


@pytest.mark.parametrize("dialect", ["a1111", "compel"])
def test_prompt_and_negative_prompt_of_other_lengths(run, dialect) -> None:
    long = "red " * 90
    for prompt, negative in (("a fox", long), (long, "bad")):
        code, (path,), err = run(prompt, "--negative-prompt", negative, "--dialect", dialect)
        assert code == 0, err
        assert Page(path.read_text("utf-8")).data["words"][-1]["of"] == "negative"


def test_sdxl_and_and(run, sdxl_folder) -> None:
    code, (path,), err = run("a fox AND a red tree", "--dialect", "a1111", model=sdxl_folder)
    assert code == 0, err
    page = Page(path.read_text("utf-8"))
    assert page.texts["button"][:-2] == ["a", "fox"]
    assert any("AND joins" in text for text in page.texts["li"])


def test_a_file_of_prompts_gives_pages_and_an_index(run, tmp_path) -> None:
    (tmp_path / "prompts.txt").write_text(f"a fox\n\n{HOSTILE}\n", "utf-8")
    code, paths, _ = run("--prompts-file", "prompts.txt", "--images", "2", "--windows", "1")
    assert code == 0 and len(paths) == 5 and paths[-1].name == "index.html"
    page = Page(paths[-1].read_text("utf-8"))
    links = [given["href"] for tag, given in page.tags if tag == "a"]
    assert links == [path.name for path in paths[:-1]]
    assert page.texts["span"] == ["a fox", "a fox", HOSTILE, HOSTILE]
    seeds = [Page(path.read_text("utf-8")).texts["dd"] for path in paths[:-1]]
    assert [("5" in s, "6" in s) for s in seeds][:2] == [(True, False), (False, True)]
    assert "script" not in page.texts and "style=" not in paths[-1].read_text("utf-8")


def test_a_picture_that_was_not_painted(run, tmp_path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((400, 300), Image.Resampling.BICUBIC).save(tmp_path / "p.png")
    code, (path,), err = run("a fox", "--image", "p.png", "--output", "page.html")
    assert code == 0 and path == Path("page.html")
    assert err.startswith("looking at p.png with ")
    assert err.endswith(f"to see it, open this in a browser: {path.resolve().as_uri()}\n")
    assert "read at 72 x 56" in err, "about as many pixels as the model paints"
    page = Page(path.read_text("utf-8"))
    assert page.data["windows"][0]["name"] == "noise of time 700"
    assert not [1 for _, given in page.tags if "data-window" in given]
    code, _, err = run("a fox", "--image", "p.png", "--size", "64x32")
    assert code == 0 and "read at 64 x 32" in err


def test_a_picture_is_looked_at_in_any_dialect(run, tmp_path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "p.png")
    shares = {}
    for dialect in ("plain", "a1111"):
        code, (path,), _ = run("a (fox:1.6) on", "--image", "p.png", "--dialect", dialect)
        page = Page(path.read_text("utf-8"))
        assert code == 0 and dialect in page.texts["dd"]
        shares[dialect] = [word["name"] for word in page.data["words"]]
    assert "1.6" in shares["plain"] or ":" in shares["plain"]
    assert shares["a1111"][2:] == ["a", "fox", "on"]
    assert "weight 1.6" in " ".join(page.texts["small"])
    code, _, err = run("a [fox:cat:0.5]", "--image", "p.png", "--dialect", "a1111")
    assert code == 2 and "changes with the steps" in err


def test_the_film_shows_what_the_model_expects(sd_folder) -> None:
    pipe = TextToImage.from_pretrained(sd_folder)
    recording = Recording(pipe, PROMPT, None, "plain", 2)
    run = {"seed": 5, "steps": 4, "scheduler": "ddim", "guidance_scale": 3.0}
    latents: list[torch.Tensor] = []
    result = paint(
        pipe, PROMPT, control=recording, on_step=lambda _, now: latents.append(now), **run
    )
    made = explain_run(pipe, recording, result.images[0], {"prompt": PROMPT, "dialect": "plain"})
    first, last = (window.picture for window in made.windows)
    assert last is made.picture
    # DDIM: both latents of a step lie on the line from its clean guess to its noise.
    pipe.scheduler = make_scheduler("ddim", pipe.scheduler.config)
    set_steps(pipe.scheduler, 4)
    alphas = [float(pipe.scheduler.alphas_cumprod[int(t)]) for t in pipe.scheduler.timesteps]
    (s0, n0), (s1, n1) = ((a**0.5, (1 - a) ** 0.5) for a in alphas[1:3])
    clean = (n1 * latents[0] - n0 * latents[1]) / (s0 * n1 - s1 * n0)
    torch.testing.assert_close(recording.expected[0], clean, rtol=1e-3, atol=1e-3)
    expected = to_images(pipe.autoencoder.decode(recording.expected[0]))[0]
    assert first is not None and np.array_equal(first, expected)


def test_a_grid_for_papers(run) -> None:
    code, (_, grid), _ = run("a fox, red", "--grid", "g.png")
    assert code == 0
    with Image.open(grid) as sheet:
        assert sheet.width == pytest.approx(4 * 200, abs=20), "picture and three words"
        assert sheet.height == pytest.approx(200, abs=60)
    code, (_, grid), _ = run("a fox", "--grid", "g.png", "--grid-steps", "--windows", "2")
    with Image.open(grid) as sheet:
        assert code == 0 and grid.name == "g-1.png" and sheet.height > 400


def test_without_scripts_the_words_and_their_maps_are_there(explained) -> None:
    made = explained[0]
    page = Page(fill_page(made))
    needs_script = ("map", "steps", "controls", "status", "hint", "step-picture")
    assert all("hidden" in element(page, name) for name in needs_script)
    assert "hidden" not in element(page, "picture")
    assert any("Scripts are off" in text for text in page.texts["p"])
    captions = page.texts["figcaption"][1:]
    assert captions == [made.words[column].name for column in made.shown]


def synthetic(side: int, grids: tuple[int, ...], words: int) -> Explained:
    """A page's content as large as that of a real model: ten windows, noisy maps."""
    draw = np.random.default_rng(0)
    blocks = [Block("down", n, (g, g), 2) for n, g in enumerate(grids)]
    blocks += [Block("mid", len(grids), (grids[-1], grids[-1]), 1)]
    blocks += [Block("up", n, (g, g), 3) for n, g in enumerate(grids)]
    picture = Image.fromarray(draw.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8))
    picture = picture.resize((side, side), Image.Resampling.BICUBIC)
    maps = tuple(
        tuple(draw.random((words, *block.grid), dtype=np.float32) for block in blocks)
        for _ in range(10)
    )
    names = tuple(
        Word("prompt", f"w{n}", 3 * n, 3 * n + 2, (f"w{n}",), 1.0, 0.1, 0.2) for n in range(words)
    )
    special = (Word("prompt", "start", None, None, (), 1.0, 0.1, 0.2),) * 2
    windows = tuple(Window(f"step {n}", 1, picture) for n in range(10))
    prompt = " ".join(word.name for word in names)
    facts = {"prompt": prompt}
    chosen = (*special, *names[2:])
    return Explained(prompt, None, picture, chosen, windows, tuple(blocks), maps, (), facts)


def test_sizes_of_pages() -> None:
    assert len(fill_page(synthetic(64, (8, 4), 18))) < 500_000
    assert len(fill_page(synthetic(512, (64, 32, 16), 16))) < 3_000_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "There is no prompt"),
        (["a fox", "--windows", "0"], "--windows is 0"),
        (["a fox", "a cat", "--output", "page.html"], "several pages"),
        (["a fox", "--output", "page.png"], "--output page.png"),
        (["a fox", "--grid", "grid.jpg"], "--grid grid.jpg"),
        (["a fox", "--grid-steps"], "--grid-steps"),
        (["a fox", "--batch-size", "2"], "--batch-size"),
        (["a fox", "--image", "p.png", "--negative-prompt", "bad"], "--negative-prompt"),
        (["a fox <lora:x:1>", "--image", "p.png", "--dialect", "a1111"], "LoRAs"),
        (["a fox", "--dialect", "none"], "none"),
        (["a fox", "--size", "65"], "multiple of 8"),
    ],
)
def test_refusals_come_before_the_model_is_loaded(run, tmp_path, arguments, said) -> None:
    code, paths, err = run(*arguments, model="no/such/model")
    assert code == 2 and not paths and said in err and "try:" in err
    assert not list(tmp_path.glob("**/*.html"))


@pytest.mark.parametrize("flags", [["--fast"], ["--deepcache", "2"], ["--tgate", "1"]])
def test_runs_that_leave_layers_or_words_out_are_refused(run, flags: list[str]) -> None:
    code, _, err = run("a cat", *flags)
    assert code == 2 and "cannot be explained" in err and "Leave out --fast" in err


def test_prompts_that_change_with_the_steps_are_refused(run) -> None:
    code, paths, err = run("a [fox:cat:0.5]", "--dialect", "a1111")
    assert code == 2 and not paths and "changes with the steps" in err


@pytest.fixture
def url(explained, tmp_path) -> str:
    path = tmp_path / "page.html"
    path.write_text(fill_page(explained[0]), "utf-8")
    return path.as_uri()


def element(page: Page, name: str) -> dict[str, str | None]:
    (found,) = [given for _, given in page.tags if given.get("id") == name]
    return found


SHOWN = "[...document.querySelectorAll('.word.shown')].map(b => Number(b.dataset.column))"
PINNED = "[...document.querySelectorAll('.word[aria-pressed=true]')].map(b => b.textContent)"


@pytest.mark.slow
def test_a_browser_shows_the_means_that_the_address_asks_for(browser, url, explained) -> None:
    made, prompt, _ = explained
    browser.open(f"{url}#word=3,6&step=2&layers=up&opacity=80&same=1", 1280, 900)
    lines = browser.run("document.getElementById('status').textContent").splitlines()

    def up(site) -> bool:
        return site.place == "up"

    for column, line in zip((3, 6), lines, strict=True):
        maps = prompt.maps(steps=(1 / 3, 2 / 3), sites=up)[column]
        drawn = torch.tensor(browser.run(f"[...heat({column}).values]")).reshape(maps.shape)
        torch.testing.assert_close(drawn, maps, atol=float(maps.max() - maps.min()) / 250, rtol=0)
        y, x = divmod(int(drawn.argmax()), maps.shape[1])
        places = [100 * (x + 0.5) / maps.shape[1], 100 * (y + 0.5) / maps.shape[0]]
        told = [float(number) for number in re.findall(r"([\d.]+)\u00a0%", line)]
        assert line.startswith(made.words[column].name)
        assert told == pytest.approx(
            [100 * float(maps.mean()), 100 * float(maps.max()), *places], abs=0.51
        )
        bar = f"document.querySelector('tr[data-column=\"{column}\"] rect').getAttribute('width')"
        assert float(browser.run(bar)) == pytest.approx(100 * float(maps.mean()), abs=0.02)
    assert browser.run("document.getElementById('step').getAttribute('aria-valuetext')")
    assert browser.run("!document.getElementById('step-picture').hidden")

    browser.open(f"{url}#word=4", 1280, 900)  # blocks with grids of several sizes, all windows
    drawn = torch.tensor(browser.run("[...heat(4).values]"))
    torch.testing.assert_close(drawn, made.map_of(4).flatten(), atol=2e-3, rtol=0)
    browser.open(f"{url}#word=999,x,-1&step=77&layers=no&opacity=1e9", 1280, 900)
    assert browser.run(PINNED) == [] and browser.run("state.step") == 0
    assert browser.said == []


@pytest.mark.slow
def test_mouse_and_keyboard_alone(browser, url) -> None:
    browser.open(url, 1280, 900)
    assert browser.run(PINNED) == NOUNS, "the nouns at first sight"
    assert browser.run("document.getElementById('status').textContent").startswith("fox: ")
    browser.key("Escape")
    assert browser.run("location.hash") == "#word="
    browser.open(f"{url}#word=", 1280, 900)
    x, y = browser.middle('button[data-column="3"]')
    browser.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert browser.run(SHOWN) == [3] and browser.run(PINNED) == []
    browser.ask("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
    assert browser.run(SHOWN) == []
    for kind in ("mousePressed", "mouseReleased"):
        browser.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    assert browser.run(PINNED) == ["fox"] and browser.run("location.hash") == "#word=3"

    browser.open(f"{url}#word=", 1280, 900)
    browser.key("Tab")  # the steps come before the words
    browser.key("Tab")
    assert browser.run("document.activeElement.textContent") == "a"
    browser.key("ArrowRight")
    assert browser.run(SHOWN) == [3] and browser.run(PINNED) == [], "focus shows"
    browser.key("Enter")
    browser.key("ArrowRight")
    browser.key("Enter")
    assert browser.run(PINNED) == ["fox", "on"]
    browser.key("Escape")
    assert browser.run(PINNED) == []
    browser.run("document.getElementById('step').focus()")
    browser.key("ArrowRight")
    assert browser.run("location.hash") == "#word=&step=1"
    assert browser.said == []


@pytest.mark.slow
def test_on_a_phone(browser, url) -> None:
    for dark in (False, True):
        browser.open(f"{url}#word=", 390, 844, dark)
        assert browser.run("document.documentElement.scrollWidth") == 390, "nothing sticks out"
        sizes = browser.run(
            "[...document.querySelectorAll('.word')].map(b => b.getBoundingClientRect())"
            ".map(b => Math.min(b.width, b.height))"
        )
        assert min(sizes) >= 44
        x, y = browser.middle('button[data-column="3"]')
        touch = [{"x": x, "y": y}]
        browser.ask("Input.dispatchTouchEvent", type="touchStart", touchPoints=touch)
        browser.ask("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        browser.wait(f"{PINNED}.length === 1")
        colours = "getComputedStyle(document.body)"
        ground = [browser.run(f"{colours}.{name}") for name in ("backgroundColor", "color")]
        light = [sum(map(int, re.findall(r"\d+", colour))) for colour in ground]
        assert (light[0] < light[1]) == dark
    assert browser.said == []
