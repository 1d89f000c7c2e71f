"""What is to be shown of a picture and its prompt: who was read where, in which layers and when.

A run is divided into windows of steps and the UNet into blocks, each with a token grid of its own.
Every word has a map for each window and block; all that a page or a grid shows are means of them.

Shapes: G columns (start, end with padding, words; then those of the negative prompt), h w grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image

from sdcore.control.heatmaps import WordHeatmaps, WordShare
from sdcore.control.made_at_begin import MadeAtBegin, tokens_in_run
from sdcore.control.run_control import Run, attention_sites
from sdcore.errors import UsageError
from sdcore.image.canvas import make_canvases
from sdcore.image.pictures import to_images
from sdcore.pipeline.image_heatmaps import heatmaps_of_image
from sdcore.prompt.explain import explain_prompt
from sdcore.text.nouns import nouns
from sdcore.text.tokenizer import describe_cut
from sdcore.text.words import FIRST_WORD, SPECIAL

if TYPE_CHECKING:
    from torch import Tensor

    from sdcore import TextToImage
    from sdcore.attention import Site
    from sdcore.diffusion.steps import Step
    from sdcore.job.job import Job
    from sdcore.job.record import ImageSettings
    from sdcore.pipeline.result import TextToImageResult
    from sdcore.text.tokenizer import Tokens

IMAGE_TIMES = (700, 500, 300, 100)
_SPECIAL_NAMES = ("start", "end and padding")


@dataclass(frozen=True)
class Word:
    """A column of the maps.

    of:         "prompt" or "negative", the text that it belongs to.
    start, end: where it stands in that text; None for the start and end tokens.
    pieces:     the tokens that it became.
    share, peak, ignored, cut: see `sdcore.control.heatmaps.WordShare`, over the whole run.
    noun:       whether it is taken for one (see `sdcore.text.nouns`): what is shown first.
    """

    of: str
    name: str
    start: int | None
    end: int | None
    pieces: tuple[str, ...]
    weight: float
    share: float
    peak: float
    ignored: bool = False
    cut: bool = False
    noun: bool = False

    @property
    def has_map(self) -> bool:
        return self.start is None or bool(self.pieces)

    @property
    def is_spoken(self) -> bool:
        """Whether it is a word of the text, and not punctuation."""
        return self.start is not None and any(letter.isalnum() for letter in self.name)


@dataclass(frozen=True)
class Window:
    """A part of the run: its name, its steps, and the picture that the model expects at its end.

    In the last window it is the picture itself.
    """

    name: str
    steps: int
    picture: Image | None


@dataclass(frozen=True)
class Block:
    """The spatial Transformers at one place and level; `layers` is how many cross-attentions."""

    place: str
    level: int
    grid: tuple[int, int]
    layers: int


@dataclass(frozen=True)
class Explained:
    """A picture and how its prompt was read; `maps[window][block]` is (G, h, w) float32."""

    prompt: str
    negative_prompt: str | None
    picture: Image
    words: tuple[Word, ...]
    windows: tuple[Window, ...]
    blocks: tuple[Block, ...]
    maps: tuple[tuple[np.ndarray[Any, Any], ...], ...]
    notes: tuple[str, ...]
    facts: dict[str, Any]

    @property
    def shown(self) -> list[int]:
        """The columns of spoken words that have a map, in order."""
        return [number for number, word in enumerate(self.words) if word.is_spoken and word.has_map]

    def map_of(self, column: int, windows: Sequence[int] | None = None) -> Tensor:
        """The mean map of a word over all blocks and some windows, on the finest grid: (h, w)."""
        size = max((block.grid for block in self.blocks), key=lambda grid: grid[0])
        total, count = torch.zeros(size), 0
        for window in range(len(self.windows)) if windows is None else windows:
            for block, maps in zip(self.blocks, self.maps[window], strict=True):
                one = torch.as_tensor(maps[column])[None, None]
                weight = self.windows[window].steps * block.layers
                count += weight
                total += weight * F.interpolate(one, size, mode="bilinear")[0, 0]
        return total / count


class Recording(MadeAtBegin[WordHeatmaps]):
    """Heatmaps of a prompt and its negative prompt, and the picture expected in each window."""

    def __init__(
        self, pipe: TextToImage, prompt: str, negative_prompt: str | None, dialect: str, most: int
    ) -> None:
        self.windows, self.most = 1, most

        def make(negative: bool, text: str, run: Run) -> WordHeatmaps:
            check_words(text, pipe, dialect, negative)
            tokenizers = [tokenizer for tokenizer, _ in pipe.readers]
            tokens = tokens_in_run(tokenizers, text, dialect, run, negative=negative)
            return WordHeatmaps(tokens, windows=most)

        super().__init__(lambda run: make(False, prompt, run))
        self._negative: MadeAtBegin[WordHeatmaps] | None = None
        if negative_prompt:
            self._negative = MadeAtBegin(lambda run: make(True, negative_prompt, run))

    @property
    def negative(self) -> MadeAtBegin[WordHeatmaps] | None:
        return self._negative

    def begin(self, run: Run) -> None:
        super().begin(run)
        self.steps: dict[int, int] = {}  # of each window
        self.expected: dict[int, Tensor] = {}  # clean latents, at the last step of each window

    def on_guess(self, step: Step, guess: Callable[[], Tensor]) -> None:
        window = step.index * self.most // step.count
        self.steps[window] = self.steps.get(window, 0) + 1
        self.expected[window] = guess()


def check_words(text: str, pipe: TextToImage, dialect: str, negative: bool) -> None:
    """UsageError for a text whose words change with the steps."""
    explanation = explain_prompt(text, pipe.readers[0][0], dialect, negative=negative)
    if sum(each.part == 1 for each in explanation.texts) > 1:
        raise UsageError(
            f"The prompt {text!r:.80} changes with the steps.",
            "A word's heatmap is that of one text for the whole run.",
            "Explain each of its versions as a prompt of its own.",
        )


def explain_job(
    pipe: TextToImage,
    job: Job,
    windows: int = 10,
    paint: Callable[[Job, Recording], TextToImageResult] | None = None,
) -> Explained:
    """A job's picture, and where, when and in which layers each word of its prompts is read.

    Args:
        windows: parts of the run that are kept apart, at most one for each step.
        paint: paints the job with a control; None is `pipe.paint`.

    Raises:
        UsageError: the job cannot be painted, a prompt changes with the steps, or shortcuts leave
            layers or words out.
    """
    if job.deepcache > 1 or job.tgate is not None:
        raise UsageError(
            "A run with deepcache or tgate cannot be explained.",
            "Each layer is shown at each step, and these leave layers or the text out.",
            "Leave out --fast, --deepcache and --tgate; fewer --steps can be explained.",
        )
    scale = pipe.defaults.guidance_scale if job.guidance_scale is None else job.guidance_scale
    negative = job.negative_text if scale > 1 else None
    recording = Recording(pipe, job.text, negative, job.dialect, windows)
    result = (paint or pipe.paint)(job, recording)
    facts = _facts(result.settings[0], negative)
    return explain_run(pipe, recording, result.images[0], facts)


def explain_run(
    pipe: TextToImage, recording: Recording, picture: Image, facts: dict[str, Any]
) -> Explained:
    """What a run recorded. `facts` hold what is to be said of it: prompt, dialect, seed ..."""
    names: list[str] = []
    pictures: list[Image] = []
    done = 0
    last = max(recording.steps)
    for window, steps in recording.steps.items():
        first, done = done + 1, done + steps
        names.append(f"step {first}" if steps == 1 else f"steps {first} to {done}")
        pixels = None if window == last else pipe.autoencoder.decode(recording.expected[window])
        pictures.append(picture if pixels is None else to_images(pixels)[0])
    windows = [
        Window(*each) for each in zip(names, recording.steps.values(), pictures, strict=True)
    ]
    both = {"prompt": recording.made}
    if recording.negative is not None:
        both["negative"] = recording.negative.made
    return _explained(pipe, picture, both, windows, facts)


def explain_picture(
    pipe: TextToImage, picture: Image, prompt: str, facts: dict[str, Any], clip_skip: int
) -> Explained:
    """The same for a picture that was not painted, noised to `IMAGE_TIMES`."""
    seed, dialect = facts["seed"], facts["dialect"]
    check_words(prompt, pipe, dialect, negative=False)
    heatmaps = heatmaps_of_image(
        pipe, picture, prompt, IMAGE_TIMES, seed=seed, dialect=dialect, clip_skip=clip_skip
    )
    (canvas,) = make_canvases([picture], None, model_size=pipe.native_size)
    (seen,) = to_images(canvas.pixels()[None])
    windows = [Window(f"noise of time {time}", 1, None) for time in sorted(IMAGE_TIMES)[::-1]]
    return _explained(pipe, seen, {"prompt": heatmaps}, windows, facts)


def _facts(settings: ImageSettings, negative_prompt: str | None) -> dict[str, Any]:
    """What the page says about the run."""
    job = settings.job
    assert job.size is not None
    named = {
        "prompt": job.text,
        "negative prompt": negative_prompt,
        "seed": job.seed,
        "steps": job.steps,
        "scheduler": settings.sampler,
        "guidance scale": job.guidance_scale,
        "size": f"{job.size.width} x {job.size.height}",
        "model": settings.model,
        "dialect": job.dialect,
    }
    return {name: value for name, value in named.items() if value is not None}


def _explained(
    pipe: TextToImage,
    picture: Image,
    heatmaps: dict[str, WordHeatmaps],
    windows: Sequence[Window],
    facts: dict[str, Any],
) -> Explained:
    recorded = heatmaps["prompt"].recorded
    blocks = _blocks(pipe, heatmaps["prompt"])
    maps = tuple(
        tuple(_maps(heatmaps, window, block) for block in blocks)
        for window in sorted({window for window, *_ in recorded})
    )
    dialect, steps = facts["dialect"], facts.get("steps", 1)
    texts = {"prompt": facts["prompt"], "negative": facts.get("negative prompt")}
    notes: dict[str, None] = {}
    room = pipe.readers[0][0].max_length - 2
    for of in heatmaps:
        explanation = explain_prompt(
            texts[of] or "", pipe.readers[0][0], dialect, steps=steps, negative=of == "negative"
        )
        # What was cut is said word by word.
        cuts = {describe_cut(text.cut, room) for text in explanation.texts}
        notes |= dict.fromkeys(note for note in explanation.notes if note not in cuts)
        if max(text.part for text in explanation.texts) > 1:
            notes["The words shown are those of the first of the prompts that AND joins."] = None
    return Explained(
        texts["prompt"] or "",
        texts["negative"] if "negative" in heatmaps else None,
        picture,
        tuple(
            word
            for of, maps in heatmaps.items()
            for word in _words(pipe, of, texts[of] or "", maps)
        ),
        tuple(windows),
        tuple(blocks),
        maps,
        tuple(notes),
        facts,
    )


def _blocks(pipe: TextToImage, heatmaps: WordHeatmaps) -> list[Block]:
    """In the order in which the UNet runs through them."""
    cross = [site for site in attention_sites(pipe.unet) if site.kind == "cross"]
    grids = {(site.place, site.level): grid for _, site, grid in heatmaps.recorded}
    return [
        Block(*place, grid, sum((site.place, site.level) == place for site in cross))
        for place, grid in grids.items()
    ]


def _maps(heatmaps: dict[str, WordHeatmaps], window: int, block: Block) -> np.ndarray:
    def chosen(site: Site) -> bool:
        return (site.place, site.level) == (block.place, block.level)

    def of(one: WordHeatmaps) -> Tensor:
        steps = (window / one.windows, (window + 1) / one.windows)
        return one.maps(steps=steps, sites=chosen).cpu()

    return torch.cat([of(one) for one in heatmaps.values()]).numpy()


def _words(pipe: TextToImage, of: str, text: str, heatmaps: WordHeatmaps) -> Iterator[Word]:
    maps, tokens = heatmaps.maps(), heatmaps.tokens
    for name, one in zip(_SPECIAL_NAMES, maps[: len(SPECIAL)], strict=True):
        yield Word(of, name, None, None, (), 1.0, float(one.mean()), float(one.max()))
    assert len(maps) == FIRST_WORD + len(tokens.spans[0])
    shares = heatmaps.share()
    named = nouns([each.span for each in shares], text)
    for each, noun in zip(shares, named, strict=True):
        yield _word(pipe, of, each, tokens, noun=noun)


def _word(pipe: TextToImage, of: str, each: WordShare, tokens: Tokens, *, noun: bool) -> Word:
    span, positions = each.span, list(each.span.positions)
    tokenizer = pipe.readers[0][0]
    pieces = [tokenizer.token(int(tokens.ids[0, at])) for at in positions]
    weights = tokens.weights[0, positions]
    return Word(
        of,
        span.word,
        span.start,
        span.end,
        tuple(piece.removesuffix("</w>") for piece in pieces),
        float(weights.mean()) if positions else 1.0,
        each.share,
        each.peak,
        ignored=bool(positions) and each.ignored,
        cut=each.cut,
        noun=noun,
    )
