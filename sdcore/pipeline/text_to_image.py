"""TextToImage: the whole way from a job to a picture.

    prompt -> tokens -> text -> (UNet, guidance, scheduler: step by step) -> latents -> image
    noise, or a noisy picture -------^

Shapes: B images, C latent channels, h w latent grid, H W pixels.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdcore.checkpoint.loading import read_model
from sdcore.checkpoint.model import Model
from sdcore.control.run_control import ControlLike, RunControl, as_run_control
from sdcore.diffusion.sampler_names import steadier_name
from sdcore.diffusion.schedulers import (
    copy_scheduler,
    largest_level,
    levels_name,
    make_scheduler,
    scheduler_name,
    set_steps,
    visited_levels,
)
from sdcore.diffusion.steps import reads_unconditional, visited_times
from sdcore.errors import NotHereError, UsageError, is_terminal, warn
from sdcore.image.pictures import to_images
from sdcore.job.adapters import EmbeddingSettings, LoraSettings
from sdcore.job.job import Job, as_jobs, make_jobs
from sdcore.job.other_names import CALL, LOADING, METHODS, in_our_words
from sdcore.job.record import ImageSettings, source_settings
from sdcore.job.sources import Noise
from sdcore.pipeline.larger import joined, larger_jobs
from sdcore.pipeline.memory import free_bytes, least_bytes
from sdcore.pipeline.regional import with_regions
from sdcore.pipeline.result import Moment, TextToImageResult
from sdcore.pipeline.start import (
    BatchSource,
    batch_source,
    check_channels,
    complete_size,
    make_start,
)
from sdcore.prompt.text import Steps
from sdcore.sampling.conditioning import PromptPlan, plan_prompts
from sdcore.sampling.loop import Sampler, denoise
from sdcore.sampling.sizes import choose_sizes
from sdcore.size import Size
from sdcore.torch_state import with_own_torch_state

if TYPE_CHECKING:
    from PIL.Image import Image


logger = logging.getLogger("sdcore")

FEW_STEPS, LATE = 8, 0.9  # when a late begin is warned of: share of the largest noise level
EMBEDDED = Path(__file__).parents[1] / "models" / "emoji"
PAINTS_TWICE = 3  # beyond so many times a model's own area things come twice


# Fields of a job that a call takes beside its arguments, as they stand there.
_OF_A_JOB = (
    "clip_skip",
    "guidance_rescale",
    "guidance_interval",
    "tiled",
    "attention",
    "convolution",
    "hires",
    "regions",
    "deepcache",
    "tgate",
    "coarse_keys",
    "budget",
)


class TextToImage(Model):
    """Paints prompts with Stable Diffusion 1.x, 2.x, XL, or the embedded model.

    A run attaches nothing to the parts. One TextToImage may be used by many threads.
    """

    @classmethod
    def embedded(
        cls, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> TextToImage:
        """The small model that comes with sdcore; needs no network."""
        return cls.from_pretrained(EMBEDDED, dtype=dtype, device=device)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        variant: str | None = None,
        revision: str | None = None,
        offline: bool = False,
        prediction_type: str | None = None,
        vae: str | Path | None = None,
        text_encoder: str | Path | Sequence[str | Path] | None = None,
        unet: str | Path | None = None,
        allow_extra: bool = False,
        **others: Any,
    ) -> TextToImage:
        """A model in diffusers' folder layout, or in one file. A safety checker is not run.

        Args:
            folder: a local folder, a single file in LDM layout (safetensors or GGUF), or a hub
                name such as "owner/model", which is downloaded once.
            dtype: of all weights; None is torch.float32.
            variant: "fp16" reads the files named *.fp16.safetensors; folders only.
            revision: branch, tag or commit of a model on the hub; None is its main branch.
            offline: take a model on the hub from the cache, without the network.
            prediction_type: "epsilon" or "v_prediction", for a single file that says it wrongly or
                not at all; a folder's scheduler says it.
            vae, text_encoder, unet: a file or folder that this part is taken from instead; of text
                encoders also several, which are told apart by their width. See
                `sdcore.checkpoint.part_files`.
            allow_extra: leave out tensors that are in none of the networks, with a warning.
            others: diffusers' names of what means the same (`torch_dtype`); all else is refused.

        Raises:
            FileError: something is missing, damaged, or of a kind that is not supported.
        """
        where: dict[str, Any] = {
            "dtype": dtype,
            "device": device,
            "variant": variant,
            "revision": revision,
            "offline": offline,
            "prediction_type": prediction_type,
            "vae": vae,
            "text_encoder": text_encoder,
            "unet": unet,
            "allow_extra": allow_extra,
        }
        if others:
            where = in_our_words(others, where, LOADING)
        model = read_model(folder, **where)
        return cls.of(model)

    def __getattr__(self, name: str) -> Any:
        if name in METHODS:
            raise NotHereError(
                f"TextToImage has no {name}.",
                "It is no pipeline of diffusers, and does the same in another way.",
                METHODS[name],
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def native_size(self) -> Size:
        """The size in pixels that the model paints when the call does not say."""
        size, factor = self.unet.config.sample_size or 64, self.autoencoder.factor
        height, width = (size, size) if isinstance(size, int) else size
        defaults = self.defaults
        return Size(defaults.width or width * factor, defaults.height or height * factor)

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        image: Image | Sequence[Image] | Tensor | None = None,
        mask: Image | Sequence[Image] | None = None,
        strength: float | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        seed: int | Sequence[int] | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        scheduler: str | None = None,
        width: int | None = None,
        height: int | None = None,
        images_per_prompt: int = 1,
        dialect: str = "plain",
        control: ControlLike | None = None,
        progress: bool | None = None,
        **others: Any,
    ) -> TextToImageResult:
        """Paint one or more prompts; for all other settings make a `Job` and `paint` it.

        Args:
            image, mask, strength: see `sdcore.make_jobs` and `sdcore.Picture`.
            negative_prompt, seed, images_per_prompt: see `sdcore.make_jobs`.
            steps, guidance_scale, scheduler, dialect: see `sdcore.Job`.
            width, height: in pixels, multiples of 8. None is the model's size, or that of the
                picture rounded down; a picture of another size is resized to them.
            control, progress: see `paint`.
            others: further fields of a `Job`, and diffusers' names of what means the same
                (`num_inference_steps`, `generator`); all else is refused with what to use.

        Raises:
            UsageError: an argument that cannot be used.
            NonFiniteError: NaN or infinity appeared; the message names the stage and step.
        """
        settings: dict[str, Any] = {
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "seed": seed,
            "images_per_prompt": images_per_prompt if images_per_prompt != 1 else None,
            "image": image,
            "mask": mask,
            "strength": strength,
            "steps": steps,
            "guidance_scale": guidance_scale,
            "scheduler": scheduler,
        }
        if others:
            settings = in_our_words(others, settings, CALL, _OF_A_JOB)
        settings["images_per_prompt"] = settings["images_per_prompt"] or 1
        jobs = make_jobs(**settings, dialect=dialect)
        factor = self.autoencoder.factor
        size = complete_size(width, height, jobs[0].source, self.native_size, factor)
        return self.paint([replace(job, size=size) for job in jobs], control, progress=progress)

    def paint(
        self,
        jobs: Job | Sequence[Job],
        control: ControlLike | None = None,
        *,
        progress: bool | None = None,
    ) -> TextToImageResult:
        """Paint a job, or several at once: they may differ in prompts, seed and source.

        Args:
            control: for the conditional rows, see `sdcore.RunControl` and `sdcore.Control`.
            progress: show a bar of the steps; None does so on a terminal.

        Raises:
            UsageError: a job that this model cannot paint, or jobs that cannot be painted at once.
            NonFiniteError: NaN or infinity appeared; the message names the stage and step.
        """
        moments = self.painting(jobs, control)
        if is_terminal(sys.stderr) if progress is None else progress:
            moments = _with_bar(moments)
        for moment in moments:
            if isinstance(moment, TextToImageResult):
                return moment
        raise AssertionError("a painting ends with its result")

    @with_own_torch_state
    def painting(
        self, jobs: Job | Sequence[Job], control: ControlLike | None = None
    ) -> Iterator[Moment | TextToImageResult]:
        """The painting of `paint`, step by step: a `Moment` after each, and at last the result.

        Whoever stops asking stops the run; nothing is left of it.
        """
        jobs = as_jobs(jobs)
        steered = None if control is None else as_run_control(control)
        job, model = jobs[0], self
        if job.attention != "auto":
            model = model.with_attention(job.attention)
        if job.convolution != "auto":
            model = model.with_convolution(job.convolution)
        if (hires := jobs[0].hires) is not None:  # before the first pass is painted
            self._check_affordable(jobs[0], hires.size, len(jobs))
        result = yield from model._one_pass(jobs, steered)
        if hires is not None:
            again = larger_jobs(result, hires, self.autoencoder.factor)
            second = yield from model._one_pass(again, steered, rerun=True)
            result = joined(result, second, hires)
        yield result

    def _one_pass(
        self, jobs: list[Job], control: RunControl | None, *, rerun: bool = False
    ) -> Generator[Moment, None, TextToImageResult]:
        """One way from noise to pictures; the generator's value is the result."""
        latent, defaults = self.autoencoder.latent_channels, self.defaults
        source = batch_source(
            jobs, native_size=self.native_size, strength=defaults.strength, channels=latent
        )
        check_channels(source, self.kind)
        jobs = [self._filled(job, source) for job in jobs]
        job, factor = jobs[0], self.autoencoder.factor
        assert job.size is not None
        self._check_affordable(job, job.size, len(jobs))
        fresh = source.is_noise and source.noise is None
        if fresh and job.size.is_far_from(self.native_size, PAINTS_TWICE):
            what = "things come twice, or apart; a second pass makes larger pictures of good ones"
            if job.size.area < self.native_size.area:
                what = "there is too little room for whole things"
            warn(f"{job.size} is far from the model's own size, {self.native_size}: {what}")
        sampler = self._sampler(jobs, source)
        told = self.unet.config.time_cond_proj_dim is not None
        guidance = replace(job.guidance, plus=reads_unconditional(sampler.scheduler), told=told)
        plan = self._plan(jobs, len(sampler.times), guided=guidance.active)
        grid = job.size.latent_grid(factor)
        reads_mask = self.kind.reads_mask
        start = make_start(
            source, sampler, self.autoencoder, grid, reads_mask=reads_mask, tiled=job.tiled
        )
        logger.info(
            "painting %d images of %s in %d steps, %s, with %s",
            *(len(jobs), job.size, len(sampler.times), scheduler_name(sampler.scheduler)),
            self.defaults.name or "a model",
        )
        latents = start.latents
        steered = with_regions(control, jobs)
        run = denoise(self.unet, sampler, start, plan, guidance, steered, job.shortcuts)
        for step, latents in run:
            yield Moment(step, latents, rerun)
        images: list[Image] = []
        if job.denoising_end is None:
            images = source.put_back(to_images(self.autoencoder.decode(latents, tiled=job.tiled)))
        settings = self._settings(jobs, source, sampler.scheduler, control)
        return TextToImageResult(images, latents, jobs, settings, len(sampler.times))

    def _check_affordable(self, job: Job, size: Size, images: int) -> None:
        """Refuse what is beyond the job's budget, before any of it is allocated."""
        job.budget.check_size(size, self.native_size)
        rows = images * (1 + job.guidance.active)
        undecoded = job.tiled or job.denoising_end is not None
        needed = least_bytes(self, size, rows, tiled=undecoded)
        what = f"A batch of {images} pictures" if images > 1 else "A picture"
        job.budget.check_memory(needed, free_bytes(self.device), f"{what} of {size}")

    def _filled(self, job: Job, source: BatchSource) -> Job:
        """The job with the model's defaults in place of what it does not say."""
        size = job.size or source.size(self.autoencoder.factor) or self.native_size
        defaults = self.defaults
        unset = {
            "steps": defaults.steps,
            "guidance_scale": defaults.guidance_scale,
            "guidance_rescale": defaults.guidance_rescale,
            "scheduler": defaults.scheduler,
            "size": size.paintable(max(self.autoencoder.factor, 8)),
        }
        # What was chosen here is what a repetition takes.
        if job.attention == "auto":
            job = replace(job, attention=self.attention)
        if job.convolution == "auto":
            job = replace(job, convolution=self.convolution)
        unset = {k: v for k, v in unset.items() if k == "size" or getattr(job, k) is None}
        loras = tuple(
            LoraSettings(on.name, on.unet, on.text, on.hash, on.blocks) for on in self.loras
        )
        own = (on for on in self.embeddings if not on.bundled)
        words = tuple(EmbeddingSettings(on.name, on.hash) for on in own)
        _check_adapters("LoRAs", job.loras, loras)
        _check_adapters("embeddings", job.embeddings, words)
        return replace(job.with_seed(), **unset, loras=loras, embeddings=words)

    def _sampler(self, jobs: Sequence[Job], source: BatchSource) -> Sampler:
        """A scheduler of this run's own, with its times set, and a generator for each image."""
        job = jobs[0]
        assert job.steps is not None
        if job.scheduler is None:
            scheduler = copy_scheduler(self.scheduler)
        else:
            config, sdxl = self.scheduler.config, self.kind.pooled_text
            scheduler = make_scheduler(job.scheduler, config, sdxl=sdxl)
        set_steps(scheduler, job.steps, self.device)
        if source.strength is None and source.denoising_start is None:
            _warn_of_late_begin(scheduler, job.steps)
        times = visited_times(
            scheduler,
            job.steps,
            strength=source.strength,
            start=source.denoising_start,
            end=job.denoising_end,
        )
        generators = [torch.Generator().manual_seed(job.seed or 0) for job in jobs]
        return Sampler(scheduler, times, generators)

    def _plan(self, jobs: Sequence[Job], steps: int, *, guided: bool) -> PromptPlan:
        job, kind = jobs[0], self.kind
        assert job.size is not None
        sizes = job.size_conditioning, job.negative_size_conditioning
        size, negative_size = choose_sizes(kind, job.size, *sizes)
        return plan_prompts(
            self.readers,
            kind,
            [job.text for job in jobs],
            [job.negative_text for job in jobs],
            Steps(steps, job.steps_before),
            guided=guided,
            dialect=job.dialect,
            clip_skip=job.clip_skip,
            size=size,
            negative_size=negative_size,
            zeros_for_no_prompt=self.defaults.zeros_for_no_prompt,
            budget=job.budget,
        )

    def _settings(
        self, jobs: Sequence[Job], source: BatchSource, scheduler: Any, control: RunControl | None
    ) -> list[ImageSettings]:
        """The record of each image."""
        beyond = {
            "latents": source.noise is not None,
            "control": control is not None and not control.watches,
            "steps_before": jobs[0].steps_before != 0,
        }
        assert jobs[0].steps is not None
        levels = levels_name(scheduler, jobs[0].steps, sdxl=self.kind.pooled_text)
        return [
            ImageSettings(
                replace(job, source=Noise(), steps_before=0, denoising_end=None),
                scheduler_name(scheduler),
                self.defaults.name,
                str(self.dtype).removeprefix("torch."),
                source=source_settings(job.source, source.strength),
                noise_levels=levels,
                batch=(i, len(jobs)),
                beyond=tuple(name for name, there in beyond.items() if there),
            )
            for i, job in enumerate(jobs)
        ]


def _warn_of_late_begin(scheduler: Any, steps: int) -> None:
    """Warn of a short run that begins where much of the picture is already decided.

    It begins with pure noise all the same, which the model takes for part of a picture.
    """
    begins, most = visited_levels(scheduler)[0], largest_level(scheduler)
    if steps <= FEW_STEPS and begins < LATE * most:
        name = scheduler_name(scheduler)
        warn(
            f"{steps} steps of {name!r} begin at noise level {begins:.3g}, not at {most:.3g} where "
            f"noise is pure; {steadier_name(name)!r} begins there"
        )


def _check_adapters(
    kind: str,
    wanted: Sequence[LoraSettings | EmbeddingSettings],
    there: Sequence[LoraSettings | EmbeddingSettings],
) -> None:
    """Refuse a job that names other adapters, or more of one, than the model has.

    A job may name none. A hash may be empty, or the first digits of one.
    """
    same = len(wanted) == len(there) and all(
        replace(one, hash="") == replace(other, hash="") and other.hash.startswith(one.hash)
        for one, other in zip(wanted, there, strict=True)
    )
    if wanted and not same:
        names, found = (", ".join(map(_adapter, adapters)) for adapters in (wanted, there))
        raise UsageError(
            f"The job asks for other {kind} than the model has.",
            f"It asks for {names}; the model has {found or 'none'}.",
            "Apply them first, with apply_loras or apply_embeddings.",
        )


def _adapter(one: LoraSettings | EmbeddingSettings) -> str:
    """An adapter in words."""
    if isinstance(one, EmbeddingSettings):
        return one.name
    blocks = f", blocks {one.blocks}" if one.blocks else ""
    return f"{one.name} (UNet {one.unet:g}, text {one.text:g}{blocks})"


def _with_bar(
    moments: Iterator[Moment | TextToImageResult],
) -> Iterator[Moment | TextToImageResult]:
    """The same, with a bar of the steps on standard error."""
    from tqdm import tqdm

    bar: tqdm[Any] | None = None
    try:
        for moment in moments:
            if isinstance(moment, Moment):
                if bar is None or moment.step.index == 0:
                    if bar is not None:
                        bar.close()
                    bar = tqdm(total=moment.step.count, unit="step")
                bar.update(1)
            yield moment
    finally:
        if bar is not None:
            bar.close()
