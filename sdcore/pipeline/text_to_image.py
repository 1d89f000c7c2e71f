"""TextToImage: the whole way from a prompt, and perhaps a picture and a mask, to a picture.

    prompt -> tokens -> text -> (UNet, guidance, scheduler: step by step) -> latents -> image
    noise, or a noisy picture -------^

Shapes: B images, C latent channels, h w latent grid, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdcore.checkpoint.defaults import ModelDefaults
from sdcore.checkpoint.loading import read_model
from sdcore.checkpoint.model import Model
from sdcore.control.run_control import ControlLike, as_run_control
from sdcore.diffusion.schedulers import copy_scheduler, make_scheduler, scheduler_name, set_steps
from sdcore.diffusion.steps import visited_times
from sdcore.image.pictures import to_images
from sdcore.metadata.image_settings import ImageSettings, SizeSettings
from sdcore.pipeline.request import Request, check_steps_before, make_request, whole
from sdcore.pipeline.source import (
    Source,
    check_channels,
    check_count,
    check_noise,
    read_source,
)
from sdcore.pipeline.start import make_start
from sdcore.sampling.conditioning import plan_prompts
from sdcore.sampling.loop import OnStep, Sampler, denoise
from sdcore.sampling.sizes import SizeConditioning, choose_sizes
from sdcore.size import Size
from sdcore.torch_state import with_own_torch_state

if TYPE_CHECKING:
    from PIL.Image import Image

EMBEDDED = Path(__file__).parents[1] / "models" / "emoji"


@dataclass(frozen=True)
class TextToImageResult:
    """What a call gives: one entry for each image, in order, prompt by prompt.

    images:   PIL pictures, RGB.
    latents:  (B, C, h, w), float32, as the autoencoder decoded them.
    settings: what each image depends on; `sdcore.metadata.png.save_png` writes them into the file.
    stopped_at: the run's `denoising_end`.
    steps_run: how often the UNet was called for each image, earlier passes included.
    """

    images: list[Image]
    latents: Tensor
    settings: list[ImageSettings]
    stopped_at: float | None = None
    steps_run: int = 0

    @property
    def seeds(self) -> list[int]:
        """The seed that paints each image alone."""
        return [settings.seed for settings in self.settings]


class TextToImage(Model):
    """Paints prompts with Stable Diffusion 1.x, 2.x, XL, or the embedded model.

    The parts are plain attributes and may be replaced. A run attaches nothing to them.
    `tokenizer_2` and `text_encoder_2` are None except in SDXL; its refiner has these alone.
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
    ) -> TextToImage:
        """A model in diffusers' folder layout, or in one file. A safety checker is not run.

        Args:
            folder: a local folder, a single .safetensors file in LDM layout, or a hub name such as
                "owner/model", which is downloaded once.
            dtype: of all weights; None is torch.float32.
            variant: "fp16" reads the files named *.fp16.safetensors; folders only.
            revision: branch, tag or commit of a model on the hub; None is its main branch.
            offline: take a model on the hub from the cache, without the network.
            prediction_type: "epsilon" or "v_prediction", for a single file that says it wrongly or
                not at all; a folder's scheduler says it.

        Raises:
            FileError: something is missing, damaged, or of a kind that is not supported.
        """
        model = read_model(
            folder,
            dtype=dtype,
            device=device,
            variant=variant,
            revision=revision,
            offline=offline,
            prediction_type=prediction_type,
        )
        return cls.of(model)

    @property
    def native_size(self) -> tuple[int, int]:
        """The width and height in pixels that the model paints when the call does not say."""
        size, factor = self.unet.config.sample_size or 64, self.autoencoder.factor
        height, width = (size, size) if isinstance(size, int) else size
        defaults = self.defaults
        return defaults.width or width * factor, defaults.height or height * factor

    @with_own_torch_state
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        image: Image | Sequence[Image] | Tensor | None = None,
        mask: Image | Sequence[Image] | None = None,
        strength: float | None = None,
        only_masked: int | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        seed: int | Sequence[int] | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float | None = None,
        scheduler: str | None = None,
        width: int | None = None,
        height: int | None = None,
        images_per_prompt: int = 1,
        dialect: str = "plain",
        clip_skip: int = 0,
        steps_before: int = 0,
        latents: Tensor | None = None,
        denoising_start: float | None = None,
        denoising_end: float | None = None,
        size_conditioning: SizeConditioning | None = None,
        negative_size_conditioning: SizeConditioning | None = None,
        tiled: bool = False,
        control: ControlLike | None = None,
        on_step: OnStep | None = None,
    ) -> TextToImageResult:
        """Paint one or more prompts. What is None is taken from the model's folder.

        Args:
            image: what to begin from in place of noise alone: a picture, or a list with one for
                each prompt or each image; or latents (B, C, h, w), as `result.latents`.
            mask: white is repainted, black stays as it is to the bit, grey mixes the two; as large
                as the picture. The result is then as large as the picture too.
            strength: above 0 to 1, how much is painted anew: the last int(steps * strength) steps
                are run. None is the model's, with a mask 1.
            only_masked: paints the part around the mask alone, this many pixels wider, at the size
                that is asked for, and puts it back.
            negative_prompt: what to keep away from, for all prompts or one for each; without
                effect at a guidance scale of 1.
            seed: image i is the image of seed + i alone, whatever the batch; None draws one. A list
                has a seed for each prompt, and the images of a prompt count on from it.
            guidance_rescale: see `sdcore.sampling.guidance.Guidance`.
            scheduler: a name in `sdcore.diffusion.schedulers.SCHEDULERS`.
            width, height: in pixels, multiples of 8. None is the model's size, or that of the
                picture rounded down; a picture of another size is resized to them.
            dialect: how marks in prompts are read and long ones divided, a name in
                `sdcore.prompt.DIALECTS`; plain has no marks and cuts, as diffusers does.
            clip_skip: how many of the text encoders' last layers are left out; in the dialect plain
                for the prompt and not for the negative prompt, as in diffusers.
            steps_before: `steps_run` of an earlier pass at another size; prompts that change with
                the steps go on where it ended, as in the web UI. See `sdcore.pipeline.second_pass`.
            latents: (B, C, h, w), standard normal noise to begin from in place of the seed's.
            denoising_start, denoising_end: between 0 and 1, the part of the way that is run: one
                model stops at 0.8 and another one begins there with image=result.latents.
            size_conditioning, negative_size_conditioning: what SDXL is told about the size of the
                picture; None is a whole picture of the size that is painted.
            tiled: the autoencoder works in tiles: for large pictures in little memory.
            control: a function that the attention layers call for the conditional rows, see
                `sdcore.Control`, or an `sdcore.RunControl`, which gives one for each `Step`.
            on_step: called with each `Step` and the latents after it.

        Raises:
            UsageError: an argument that cannot be used.
            NonFiniteError: NaN or infinity appeared; the message names the stage and step.
        """
        control = None if control is None else as_run_control(control)
        check_noise(latents)
        source = read_source(
            image,
            mask,
            strength=strength,
            denoising_start=denoising_start,
            only_masked=only_masked,
            size=(width, height),
            model_size=self.native_size,
            default_strength=self.defaults.strength,
            channels=self.autoencoder.latent_channels,
        )
        choices = self._default_size(source, latents).choose(
            steps=whole(steps),
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            scheduler=scheduler,
            width=width,
            height=height,
        )
        latent = self.autoencoder.latent_channels
        factor, clip_skip = self.autoencoder.factor, whole(clip_skip)
        steps_before = check_steps_before(steps_before)
        request = make_request(prompt, negative_prompt, seed, images_per_prompt, choices, factor)
        check_count(source, len(request.seeds) // images_per_prompt, len(request.seeds))
        check_channels(source, self.unet.config.in_channels, latent)
        sampler = self._sampler(choices, source, request, denoising_end)
        kind, painted = self.kind, Size(request.width, request.height)
        sizes = size_conditioning, negative_size_conditioning
        size, negative_size = choose_sizes(kind, painted, *sizes)
        plan = plan_prompts(
            self.readers,
            kind,
            request.prompts,
            request.negative_prompts,
            len(sampler.times),
            guided=request.guidance.active,
            dialect=dialect,
            clip_skip=clip_skip,
            steps_before=steps_before,
            size=size,
            negative_size=negative_size,
            zeros_for_no_prompt=self.defaults.zeros_for_no_prompt,
        )
        start = make_start(
            source,
            sampler,
            self.autoencoder,
            (request.height // factor, request.width // factor),
            latents,
            reads_mask=kind.reads_mask,
            tiled=tiled,
        )
        denoised = denoise(self.unet, sampler, start, plan, request.guidance, control, on_step)
        images: list[Image] = []
        if denoising_end is None:
            images = source.put_back(to_images(self.autoencoder.decode(denoised, tiled=tiled)))
        settings = self._settings(
            request,
            choices,
            sampler,
            source,
            sizes,
            dialect=dialect,
            clip_skip=clip_skip,
            tiled=tiled,
            beyond=("latents",) * (latents is not None)
            + ("control",) * (control is not None)
            + ("steps_before",) * (steps_before != 0),
        )
        return TextToImageResult(images, denoised, settings, denoising_end, len(sampler.times))

    def _default_size(self, source: Source, noise: Tensor | None) -> ModelDefaults:
        """The model's defaults with the size that follows from what was given."""
        factor = self.autoencoder.factor
        size = source.size(factor)
        if noise is not None and not size:
            height, width = (size * factor for size in noise.shape[2:])
            size = {"width": width, "height": height}
        width, height = self.native_size
        return replace(self.defaults, **{"width": width, "height": height, **size})

    def _sampler(
        self, choices: ModelDefaults, source: Source, request: Request, end: float | None
    ) -> Sampler:
        """A scheduler of this run's own, with its times set."""
        if choices.scheduler is None:
            scheduler = copy_scheduler(self.scheduler)
        else:
            scheduler = make_scheduler(choices.scheduler, self.scheduler.config)
        set_steps(scheduler, choices.steps, self.device)
        times = visited_times(
            scheduler,
            choices.steps,
            strength=source.strength,
            start=source.denoising_start,
            end=end,
        )
        generators = [torch.Generator().manual_seed(seed) for seed in request.seeds]
        return Sampler(scheduler, times, generators)

    def _settings(
        self,
        request: Request,
        choices: ModelDefaults,
        sampler: Sampler,
        source: Source,
        sizes: Sequence[SizeConditioning | None],
        **more: Any,
    ) -> list[ImageSettings]:
        told = [None if size is None else SizeSettings(**vars(size)) for size in sizes]
        sources = source.settings(len(request.seeds))
        each = zip(request.prompts, request.negative_prompts, request.seeds, sources, strict=True)
        return [
            ImageSettings(
                prompt,
                negative_prompt,
                seed,
                steps=choices.steps,
                guidance_scale=choices.guidance_scale,
                guidance_rescale=choices.guidance_rescale,
                scheduler=scheduler_name(sampler.scheduler),
                width=request.width,
                height=request.height,
                model=self.defaults.name,
                precision=str(self.dtype).removeprefix("torch."),
                own_scheduler=choices.scheduler is None,
                source=begun_from,
                size=told[0],
                negative_size=told[1],
                batch=(i, len(request.seeds)),
                **more,
            )
            for i, (prompt, negative_prompt, seed, begun_from) in enumerate(each)
        ]
