"""A job: all that one picture depends on, apart from the model and the machine.

Flags, a line of JSON, a picture's own record, a page and a server make jobs; `TextToImage.paint`
paints them, and results carry them. Two equal jobs give equal bits. An option is a field here, a
flag in `sdcore.app.flags`, and the one place that uses it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, NamedTuple, cast

from PIL import Image
from torch import Tensor

from sdcore.attention_choice import check_attention
from sdcore.checks import as_int, check_choice, check_int, shown
from sdcore.convolution import check_convolution
from sdcore.diffusion.guidance import Guidance
from sdcore.diffusion.sampler_names import canonical_name
from sdcore.diffusion.shortcuts import Shortcuts
from sdcore.diffusion.steps import check_share
from sdcore.errors import UsageError
from sdcore.image.canvas import TOUCHED
from sdcore.image.pictures import to_mask, to_rgb
from sdcore.job.adapters import EmbeddingSettings, HiresSettings, LoraSettings, RegionSettings
from sdcore.job.budget import Budget
from sdcore.job.sources import Latents, Noise, Picture, Source, check_latents
from sdcore.prompt.dialects import DIALECTS, dialect_name
from sdcore.prompt.text import BREAK
from sdcore.size import Size, SizeConditioning

LARGEST_SEED = 2**63 - 1
NOISE, GENEROUS = Noise(), Budget()
UPSCALES = ("pixels", "latents")
REGIONS = 32  # of a picture, at most


@dataclass(frozen=True)
class Job:
    """One picture to paint. What is None is the model's.

    Attributes:
        negative_prompt: what to keep away from; without effect at a guidance scale of 1.
        seed: None is drawn when it is painted.
        guidance_scale, guidance_rescale, guidance_interval: see `sdcore.Guidance`.
        scheduler: a sampler's name in any usual spelling, see `sdcore.make_scheduler`.
        size: in pixels, multiples of 8. None is the model's, or that of the picture rounded down;
            a picture of another size is resized to it.
        source: `Noise`, `Picture` (with its mask), `Latents` or `Handover`.
        dialect: how marks in prompts are read and long ones divided, a name in
            `sdcore.prompt.dialects.DIALECTS`; plain has no marks and cuts, as diffusers does.
        clip_skip: how many of the text encoders' last layers are left out; in the dialect plain for
            the prompt and not for the negative prompt, as in diffusers.
        attention: the backend, a name in `sdcore.attention.BACKENDS`; auto is what the
            model's layers have.
        convolution: torch or winograd, see `sdcore.use_convolution`; auto is what the model has.
        loras, embeddings: by name; `sdcore.app.session.Session` finds their files.
        hires: a second pass at another size.
        denoising_end: between 0 and 1, where the run stops; another model goes on from there with
            `Handover`. The result then has latents and no picture.
        size_conditioning, negative_size_conditioning: what SDXL is told about the size of the
            picture; None is a whole picture of the size that is painted.
        tiled: the autoencoder works in tiles: for large pictures in little memory.
        steps_before: `steps_run` of an earlier pass at another size; prompts that change with the
            steps go on where it ended, as in the web UI.
        regions: parts of the picture with a prompt of their own, in a dialect that knows BREAK.
        deepcache, tgate, coarse_keys: fewer operations, with a loss, see
            `sdcore.diffusion.shortcuts`.
        budget: how much it may ask for. It changes no picture, is no part of a record, and two jobs
            that differ in it alone are equal.

    Raises:
        UsageError: a value that cannot be used, whatever the model; or more than the budget.
    """

    prompt: str
    negative_prompt: str | None = None
    seed: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    guidance_rescale: float | None = None
    scheduler: str | None = None
    size: Size | None = None
    source: Source = NOISE
    dialect: str = "plain"
    clip_skip: int = 0
    attention: str = "auto"
    loras: tuple[LoraSettings, ...] = ()
    embeddings: tuple[EmbeddingSettings, ...] = ()
    hires: HiresSettings | None = None
    denoising_end: float | None = None
    size_conditioning: SizeConditioning | None = None
    negative_size_conditioning: SizeConditioning | None = None
    tiled: bool = False
    steps_before: int = 0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    regions: tuple[RegionSettings, ...] = ()
    convolution: str = "auto"
    deepcache: int = 1
    tgate: int | None = None
    coarse_keys: int = 1
    budget: Budget = field(default=GENEROUS, compare=False)

    def __post_init__(self) -> None:
        _check_text(self.prompt, "prompt")
        if self.negative_prompt is not None:
            _check_text(self.negative_prompt, "negative prompt")
        self._as_int("clip_skip", 0, "It counts the layers that are left out.")
        self._as_int("steps_before", 0, "It counts the steps of an earlier pass.")
        if self.seed is not None:
            object.__setattr__(self, "seed", check_seed(self.seed))
        if self.steps is not None:
            self._as_int("steps", 1, "It is how often the latents are looked at.")
        object.__setattr__(self, "guidance_interval", self.guidance.interval)
        for name, value in vars(self.shortcuts).items():
            object.__setattr__(self, name, value)
        if self.scheduler is not None:
            object.__setattr__(self, "scheduler", canonical_name(self.scheduler))
        if not isinstance(self.source, Source):
            raise UsageError(
                f"The source is of type {type(self.source).__name__}.",
                "It says what the picture begins from.",
                "Pass Noise(), Picture(image), Latents(latents) or Handover(latents, start).",
            )
        for name, kind in _RECORDS.items():
            self._check_record(name, kind)
        self._check_budget()
        if not isinstance(self.tiled, bool):
            raise UsageError(
                f"The switch tiled is {shown(self.tiled)}.",
                "It is on or off.",
                "Use True or False.",
            )
        object.__setattr__(self, "dialect", dialect_name(self.dialect))
        self._check_regions()
        if self.attention != "auto":
            check_attention(self.attention)
        check_convolution(self.convolution)
        check_share("denoising_end", self.denoising_end)

    def _check_regions(self) -> None:
        if self.regions and not DIALECTS[self.dialect].breaks:
            known = [name for name, dialect in DIALECTS.items() if dialect.breaks]
            raise UsageError(
                f"Regions cannot be used in the dialect {self.dialect}.",
                "Their prompts are joined by BREAK, which it does not know.",
                f"Use the dialect {' or '.join(known)}.",
            )
        if len(self.regions) > REGIONS:
            why = f"A picture has {REGIONS} at most."
            raise UsageError(f"There are {len(self.regions)} regions.", why, "Leave some out.")

    def _check_budget(self) -> None:
        """Refuse what asks for more than the budget, as far as that is known without a model."""
        if self.budget is None:  # pyright: ignore[reportUnnecessaryComparison]
            object.__setattr__(self, "budget", GENEROUS)
        check = self.budget.check
        check("letters", len(self.text), "The prompt")
        check("letters", len(self.negative_text or ""), "The negative prompt")
        check("steps", max(self.steps or 0, self.steps_before), "The run")
        check("adapters", len(self.loras) + len(self.embeddings), "The job")
        if self.size is not None:
            self.budget.check_size(self.size)
        if self.hires is not None:
            check_choice("upscale", self.hires.upscale, UPSCALES)
            check_share("strength", self.hires.strength)
            self.budget.check_size(self.hires.size)
            if self.hires.steps is not None:
                least = "It is how often the latents are looked at."
                steps = check_int("steps of the second pass", self.hires.steps, 1, hint=least)
                check("steps", steps, "The second pass")
        for sizes in (self.size_conditioning, self.negative_size_conditioning):
            if sizes is not None:
                sizes.check()

    @property
    def text(self) -> str:
        """What the text encoders read: the prompt, and those of the regions behind it."""
        return BREAK.join([self.prompt, *(region.prompt for region in self.regions)])

    @property
    def negative_text(self) -> str | None:
        """The same of what to keep away from; regions that say nothing have the job's."""
        if not any(region.negative_prompt for region in self.regions):
            return self.negative_prompt
        general = self.negative_prompt or ""
        return BREAK.join([general, *(each.negative_prompt or general for each in self.regions)])

    @property
    def guidance(self) -> Guidance:
        """How strongly the prompt is followed; what the model decides stands at its usual value."""
        scale, rescale = self.guidance_scale, self.guidance_rescale
        return Guidance(
            Guidance.scale if scale is None else scale,
            Guidance.rescale if rescale is None else rescale,
            self.guidance_interval,
        )

    @property
    def shortcuts(self) -> Shortcuts:
        """What the run spares."""
        return Shortcuts(self.deepcache, self.tgate, self.coarse_keys)

    def _as_int(self, name: str, least: int, why: str) -> None:
        """Make a field an int. UsageError where it is no whole number from `least` up."""
        value = getattr(self, name)
        number = as_int(value, least)
        if number is None:
            hint = f"Use a whole number from {least} up."
            raise UsageError(f"{name} is {shown(value)}.", why, hint)
        object.__setattr__(self, name, number)

    def _check_record(self, name: str, kind: type[Any]) -> None:
        """Refuse a field that is no record of a kind; make one that holds several a tuple."""
        value, several = getattr(self, name), name in _SEVERAL
        records: list[Any] = [value]
        if several and isinstance(value, tuple | list):
            records = [*cast("Sequence[Any]", value)]
            object.__setattr__(self, name, tuple(records))
        for record in records:
            if not isinstance(record, kind) and (record is not None or several):
                needed = [each.name for each in fields(kind) if each.default is MISSING]
                raise UsageError(
                    f"{name} is of type {type(record).__name__}, or holds one.",
                    f"It is a tuple of {kind.__name__}."
                    if several
                    else f"It is a {kind.__name__}, so that nobody has to remember an order.",
                    f"Pass {kind.__name__}({', '.join(needed)}){' in a tuple' * several}.",
                )

    def with_seed(self) -> Job:
        """The same job; with a drawn seed where it has none."""
        return replace(self, seed=draw_seed()) if self.seed is None else self

    def changed(self, **settings: Any) -> Job:
        """The same job with each setting that is not None in place of its own."""
        return replace(self, **{k: v for k, v in settings.items() if v is not None})


_SEVERAL = ("loras", "embeddings", "regions")
_RECORDS: dict[str, type[Any]] = {
    "budget": Budget,
    "size": Size,
    "hires": HiresSettings,
    "loras": LoraSettings,
    "embeddings": EmbeddingSettings,
    "regions": RegionSettings,
    "size_conditioning": SizeConditioning,
    "negative_size_conditioning": SizeConditioning,
}
# What may differ between jobs that are painted at once.
OWN = ("prompt", "negative_prompt", "seed", "source")


def make_jobs(
    prompt: str | Sequence[str],
    *,
    negative_prompt: str | Sequence[str] | None = None,
    seed: int | Sequence[int] | None = None,
    images_per_prompt: int = 1,
    image: Image.Image | Sequence[Image.Image] | Tensor | None = None,
    mask: Image.Image | Sequence[Image.Image] | None = None,
    strength: float | None = None,
    only_masked: int | None = None,
    mask_cells: str | None = None,
    noise: Tensor | None = None,
    **settings: Any,
) -> list[Job]:
    """Jobs to be painted at once, image by image, prompt by prompt.

    Args:
        negative_prompt: one for all prompts, or a list with one for each.
        seed: image i gets seed + i; None draws one. A list has a seed for each prompt, and the
            images of a prompt count on from it.
        image: a picture, or a list with one for each prompt or each image; or clean latents
            (B, C, h, w). `mask`, `strength`, `only_masked` and `mask_cells` as in `Picture`.
        noise: standard normal latents (B, C, h, w), one for each image, in place of the seeds'.
        settings: further fields of `Job`, the same for all.

    Raises:
        UsageError: an argument that cannot be used, or not with the others; or more images than
            the budget has.
    """
    hint = "Leave it out for one picture of each prompt."
    images_per_prompt = check_int("images_per_prompt", images_per_prompt, 1, hint=hint)
    prompts = _texts(prompt, "prompt")
    budget = settings.get("budget") or GENEROUS
    if isinstance(budget, Budget):  # what it else may be is refused with the first job
        budget.check("images", len(prompts) * images_per_prompt, "The request")
    negatives = _negative_texts(negative_prompt, len(prompts))
    seeds = _seeds(seed, len(prompts), images_per_prompt)
    how = _How(strength, only_masked, mask_cells)
    sources = _sources(image, mask, how, noise, len(prompts), len(seeds))
    return [
        Job(
            prompts[i // images_per_prompt],
            negatives[i // images_per_prompt],
            seeds[i],
            source=source,
            **settings,
        )
        for i, source in enumerate(sources)
    ]


def as_jobs(jobs: Job | Iterable[Job]) -> list[Job]:
    """Jobs to be painted at once. UsageError where they are no jobs, or not alike."""
    found: list[Any]
    found = [*jobs] if isinstance(jobs, Iterable) and not isinstance(jobs, str) else [jobs]
    for job in found:
        if not isinstance(job, Job):
            raise UsageError(
                f"This is no job but of type {type(job).__name__}.",
                "A prompt is one field of a job.",
                'Use pipe("a fox"), or pipe.paint(Job("a fox")).',
            )
    check_alike(found)
    return found


def check_alike(jobs: Sequence[Job]) -> None:
    """Refuse jobs that cannot be painted at once, naming what differs."""
    if not jobs:
        raise UsageError("There is no job.", "There is nothing to paint.", "Pass at least one.")
    for name in (each.name for each in fields(Job) if each.name not in OWN):
        values = [getattr(job, name) for job in jobs]
        if any(value != values[0] for value in values):
            raise UsageError(
                f"The jobs have different {name}.",
                "Jobs that are painted at once differ in prompt, negative prompt, seed and source.",
                "Paint them one after the other.",
            )
    kinds = {type(job.source) for job in jobs}
    if len(kinds) > 1:
        raise UsageError(
            "The jobs begin from different kinds of sources.",
            f"They are {', '.join(sorted(kind.__name__ for kind in kinds))}.",
            "Paint them one after the other.",
        )


def draw_seed() -> int:
    """A seed that nobody chose, short enough to be typed again."""
    return secrets.randbelow(2**32)


def check_seed(seed: Any, count: int = 1) -> int:
    """The seed of the first of `count` images as an int, if all of them are seeds."""
    last = LARGEST_SEED - count + 1
    return check_int("The seed", seed, 0, last, hint="Leave it out for a random one.")


def _check_text(text: Any, name: str) -> None:
    if not isinstance(text, str):
        raise UsageError(
            f"The {name} is not text.",
            f"It is {shown(text)}.",
            "Pass a string, or a list of strings.",
        )


def _texts(prompt: str | Sequence[str], name: str) -> list[str]:
    if isinstance(prompt, str) or not isinstance(prompt, Sequence):
        _check_text(prompt, name)
        return [prompt]
    if not all(isinstance(text, str) for text in prompt):
        _check_text(prompt, name)
    if not prompt:
        raise UsageError(
            f"The list of {name}s is empty.", "There is nothing to paint.", "Pass at least one."
        )
    return list(prompt)


def _negative_texts(prompt: str | Sequence[str] | None, count: int) -> list[str | None]:
    if prompt is None or isinstance(prompt, str):
        return [prompt] * count
    texts = _texts(prompt, "negative prompt")
    if len(texts) != count:
        raise UsageError(
            f"There are {len(texts)} negative prompts for {count} prompts.",
            "A list needs one for each prompt.",
            "Pass one string to use it for all prompts.",
        )
    return [*texts]


def _seeds(seed: int | Sequence[int] | None, prompts: int, images: int) -> list[int]:
    if seed is None:
        seed = draw_seed()
    if not isinstance(seed, Sequence) or isinstance(seed, str):
        first, images = check_seed(seed, prompts * images), prompts * images
        return [first + i for i in range(images)]
    if len(seed) != prompts:
        raise UsageError(
            f"There are {len(seed)} seeds for {prompts} prompts.",
            "A list needs one for each prompt.",
            "Pass one number to count on from it.",
        )
    return [check_seed(one, images) + i for one in seed for i in range(images)]


class _How(NamedTuple):
    """How pictures are painted over."""

    strength: Any
    only_masked: Any
    mask_cells: Any


def _sources(
    image: Any, mask: Any, how: _How, noise: Any, prompts: int, images: int
) -> list[Source]:
    """What each image begins from; one source object for all images that share it."""
    of_latents = isinstance(image, Tensor)
    for name, value, needed in (
        ("mask", mask, image),
        ("strength", how.strength, image),
        ("only_masked", how.only_masked, mask),
        ("mask_cells", how.mask_cells, mask),
    ):
        if value is not None and needed is None:
            what = "image" if name in ("mask", "strength") else "mask"
            raise UsageError(f"{name} is given alone.", f"It needs {what}.", f"Pass {what}.")
    if mask is not None and of_latents:
        raise UsageError(
            "A mask is given with latents.",
            "What is outside the mask is taken from a picture.",
            "Pass the picture as a PIL image.",
        )
    if image is None:
        return _noise(noise, images)
    if noise is not None:
        raise UsageError(
            "Noise is given with a picture.",
            "What is painted over a picture begins from the noise of the seed.",
            "Leave one of them out.",
        )
    if of_latents:
        check_latents(image, "latents given as image", dimensions=4)
        sources: list[Source] = [Latents(each, how.strength) for each in image]
    else:
        sources = _pictures(image, mask, how)
    if len(sources) not in (1, prompts, images):
        needed = f"{prompts}" if prompts == images else f"{prompts} or {images}"
        raise UsageError(
            f"There are {len(sources)} pictures for {prompts} prompts.",
            f"A list needs one for each prompt or each image: {needed}.",
            "Pass one picture to use it for all prompts.",
        )
    return [sources[i * len(sources) // images] for i in range(images)]


def _noise(noise: Any, images: int) -> list[Source]:
    if noise is None:
        return [NOISE] * images
    check_latents(noise, "latents", dimensions=4)
    if len(noise) != images:
        raise UsageError(
            f"The latents have the shape {tuple(noise.shape)}.",
            f"There are {images} images to paint.",
            "Pass noise for each of them.",
        )
    return [Noise(each) for each in noise]


def _pictures(image: Any, mask: Any, how: _How) -> list[Source]:
    images = _several(image, "image")
    masks = [None] if mask is None else _several(mask, "mask")
    if len(masks) not in (1, len(images)):
        raise UsageError(
            f"There are {len(masks)} masks for {len(images)} pictures.",
            "Each picture needs one.",
            "Pass one mask to use it for all pictures.",
        )
    masks = masks * len(images) if len(masks) == 1 else masks
    numbered = [f" number {i + 1}" if len(images) > 1 else "" for i in range(len(images))]
    return [
        Picture(
            to_rgb(picture, f"The picture{number}"),
            how.strength,
            None if one is None else to_mask(one, f"The mask{number}"),
            how.only_masked,
            how.mask_cells or TOUCHED,
        )
        for picture, one, number in zip(images, masks, numbered, strict=True)
    ]


def _several(value: Any, name: str) -> list[Any]:
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        value = cast("Sequence[Any]", value)
        if not value:
            raise UsageError(f"The list of {name}s is empty.", "One is needed.", "Pass one.")
        return list(value)
    return [value]
