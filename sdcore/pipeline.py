"""TextToImage: the whole way from a prompt to a picture.

    prompt -> tokens -> text -> (UNet, guidance, scheduler: step by step) -> latents -> image

Shapes: B images, C latent channels, h w latent grid, H W pixels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdcore.autoencoder import Autoencoder
from sdcore.checkpoint import resolve_folder
from sdcore.checkpoint.single_file import read_single_file
from sdcore.conditioning import PromptPlan, Reader, SizeConditioning, plan_prompts
from sdcore.errors import NonFiniteError, UsageError
from sdcore.guidance import guided_prediction
from sdcore.image_settings import ImageSettings
from sdcore.model_defaults import ModelDefaults, find_components, read_defaults
from sdcore.request import Request, make_request
from sdcore.schedulers import (
    Step,
    copy_scheduler,
    iterate_steps,
    load_scheduler,
    make_scheduler,
    scheduler_name,
    set_steps,
    take_step,
)
from sdcore.text_encoder import CLIPTextEncoder
from sdcore.tokenizer import Tokenizer
from sdcore.unet import UNet

if TYPE_CHECKING:
    from PIL.Image import Image

EMBEDDED = Path(__file__).parent / "models" / "emoji"

OnStep = Callable[[Step, Tensor], None]
Generators = Sequence[torch.Generator]


@dataclass(frozen=True)
class TextToImageResult:
    """What a call gives: one entry for each image, in order, prompt by prompt.

    images:   PIL pictures, RGB.
    latents:  (B, C, h, w), float32, as the autoencoder decoded them.
    settings: what each image depends on; `sdcore.png.save_png` writes them into the file.
    """

    images: list[Image]
    latents: Tensor
    settings: list[ImageSettings]

    @property
    def seeds(self) -> list[int]:
        """The seed that paints each image alone."""
        return [settings.seed for settings in self.settings]


class TextToImage:
    """Paints prompts with Stable Diffusion 1.x, 2.x, XL, or the embedded model.

    The parts are plain attributes and may be replaced. A run attaches nothing to them.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        text_encoder: CLIPTextEncoder,
        unet: UNet,
        autoencoder: Autoencoder,
        scheduler: Any,
        *,
        second_reader: Reader | None = None,
        defaults: ModelDefaults | None = None,
    ) -> None:
        self.tokenizer, self.text_encoder = tokenizer, text_encoder
        self.tokenizer_2, self.text_encoder_2 = second_reader or (None, None)
        self.unet, self.autoencoder, self.scheduler = unet, autoencoder, scheduler
        self.defaults = defaults or ModelDefaults()

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
        prediction_type: str | None = None,
    ) -> TextToImage:
        """A model in diffusers' folder layout, or in one file. A safety checker is not run.

        Args:
            folder: a local folder, a single .safetensors file in LDM layout, or a hub name such as
                "owner/model", which is downloaded once.
            dtype: of all weights; None is torch.float32.
            variant: "fp16" reads the files named *.fp16.safetensors; folders only.
            prediction_type: "epsilon" or "v_prediction", for a single file that says it wrongly or
                not at all; a folder's scheduler says it.

        Raises:
            FileError: something is missing, damaged, or of a kind that is not supported.
        """
        if os.path.isfile(folder):
            if variant is not None:
                why = "a single file comes in one precision"
                raise UsageError(f"variant={variant!r:.80} cannot be used", why, "leave it out")
            parts = read_single_file(
                folder, dtype=dtype, device=device, prediction_type=prediction_type
            )
            return cls(**vars(parts))
        if prediction_type is not None:
            what = f"prediction_type={prediction_type!r:.80} cannot be used"
            hint = "set prediction_type in the model's scheduler/scheduler_config.json"
            raise UsageError(what, "it is for single files; a folder says it itself", hint)
        folder = resolve_folder(folder)
        index = find_components(folder)
        how: dict[str, Any] = {"dtype": dtype, "device": device, "variant": variant}
        second: Reader | None = None
        if "text_encoder_2" in index.components:
            second = (
                Tokenizer.from_pretrained(folder, subfolder="tokenizer_2"),
                CLIPTextEncoder.from_pretrained(folder, subfolder="text_encoder_2", **how),
            )
        return cls(
            Tokenizer.from_pretrained(folder, subfolder="tokenizer"),
            CLIPTextEncoder.from_pretrained(folder, subfolder="text_encoder", **how),
            UNet.from_pretrained(folder, subfolder="unet", **how),
            Autoencoder.from_pretrained(folder, subfolder="vae", **how),
            load_scheduler(folder / "scheduler"),
            second_reader=second,
            defaults=read_defaults(folder, index),
        )

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype

    def to(self, *args: Any, **kwargs: Any) -> TextToImage:
        """Move or convert every network in place, as `torch.nn.Module.to` does."""
        for part in (self.text_encoder, self.text_encoder_2, self.unet, self.autoencoder):
            if part is not None:
                part.to(*args, **kwargs)
        return self

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        seed: int | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float | None = None,
        scheduler: str | None = None,
        width: int | None = None,
        height: int | None = None,
        images_per_prompt: int = 1,
        clip_skip: int = 0,
        latents: Tensor | None = None,
        control: Any = None,
        on_step: OnStep | None = None,
    ) -> TextToImageResult:
        """Paint one or more prompts. What is None is taken from the model's folder.

        Args:
            negative_prompt: what to keep away from, for all prompts or one for each; without
                effect at a guidance scale of 1.
            seed: image i is the image of seed + i alone, whatever the batch; None draws one.
            guidance_rescale: see `sdcore.guidance.Guidance`.
            scheduler: a name in `sdcore.schedulers.SCHEDULERS`.
            width, height: in pixels, multiples of 8.
            clip_skip: how many of the text encoder's last layers are left out, for the prompt and
                not for the negative prompt, as in diffusers.
            latents: (B, C, h, w), standard normal noise to begin from in place of the seed's.
            control: an `sdcore.attention.Control` for the conditional rows. One that has a method
                `at(step)` is asked before each `Step` for the control to use then, or None.
            on_step: called with each `Step` and the latents after it.

        Raises:
            UsageError: an argument that cannot be used.
            NonFiniteError: NaN or infinity appeared; the message names the stage and step.
        """
        choices = self._default_size(latents).choose(
            steps=steps,
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            scheduler=scheduler,
            width=width,
            height=height,
        )
        factor = self.autoencoder.factor
        request = make_request(prompt, negative_prompt, seed, images_per_prompt, choices, factor)
        sampler = self._sampler(choices)
        generators = [torch.Generator().manual_seed(seed) for seed in request.seeds]
        noise = self._noise(request, latents, generators)
        plan = self._plan(request, len(sampler.timesteps), clip_skip)
        denoised = self._denoise(noise, sampler, request, plan, generators, control, on_step)
        images = to_images(self.autoencoder.decode(denoised))
        settings = self._settings(request, choices, sampler, clip_skip)
        return TextToImageResult(images, denoised, settings)

    def _default_size(self, latents: Tensor | None) -> ModelDefaults:
        factor = self.autoencoder.factor
        if latents is not None and not isinstance(latents, Tensor):
            raise UsageError(
                f"The latents are of type {type(latents).__name__}.",
                "They must be a torch tensor (B, C, h, w).",
                "Use torch.as_tensor, or leave them out for noise of the seed.",
            )
        if latents is not None and latents.ndim == 4:
            height, width = (size * factor for size in latents.shape[2:])
            return self.defaults.choose(width=width, height=height)
        size = self.unet.config.sample_size or 64
        height, width = (size, size) if isinstance(size, int) else size
        return ModelDefaults(width=width * factor, height=height * factor).choose(
            **vars(self.defaults)
        )

    def _sampler(self, choices: ModelDefaults) -> Any:
        """A scheduler of this run's own, with its times set."""
        if choices.scheduler is None:
            sampler = copy_scheduler(self.scheduler)
        else:
            sampler = make_scheduler(choices.scheduler, self.scheduler.config)
        set_steps(sampler, choices.steps, self.device)
        return sampler

    def _noise(self, request: Request, latents: Tensor | None, generators: Generators) -> Tensor:
        """Standard normal noise (B, C, h, w), float32, each image's from its own seed."""
        channels, factor = self.autoencoder.latent_channels, self.autoencoder.factor
        if self.unet.config.in_channels != channels:
            raise UsageError(
                f"This UNet reads {self.unet.config.in_channels} channels.",
                f"The latents have {channels}; the rest is for a picture and mask to inpaint.",
                "Use a text-to-image model.",
            )
        one = (channels, request.height // factor, request.width // factor)
        if latents is None:
            drawn = [torch.randn(one, generator=generator) for generator in generators]
            return torch.stack(drawn).to(self.device)
        shape = (len(request.seeds), *one)
        if tuple(latents.shape) != shape:
            raise UsageError(
                f"The latents have the shape {tuple(latents.shape)}.",
                f"These prompts and this size need {shape}.",
                "Leave width and height out to follow the latents.",
            )
        return latents.to(self.device, torch.float32)

    def _plan(self, request: Request, steps: int, clip_skip: int) -> PromptPlan:
        """What each of `steps` calls of the UNet is told about the prompts."""
        readers: list[Reader] = [(self.tokenizer, self.text_encoder)]
        size = None
        if self.tokenizer_2 is not None and self.text_encoder_2 is not None:
            readers.append((self.tokenizer_2, self.text_encoder_2))
            painted = (request.height, request.width)
            size = SizeConditioning(original=painted, crop=(0, 0), target=painted)
        zeros = self.defaults.zeros_for_no_prompt
        return plan_prompts(
            readers, request, steps, clip_skip=clip_skip, size=size, zeros_for_no_prompt=zeros
        )

    def _denoise(
        self,
        noise: Tensor,
        sampler: Any,
        request: Request,
        plan: PromptPlan,
        generators: Generators,
        control: Any,
        on_step: OnStep | None,
    ) -> Tensor:
        """The sampling loop: latents (B, C, h, w) stay float32, the UNet runs in its own type."""
        latents = noise * sampler.init_noise_sigma
        for step, time in iterate_steps(sampler.timesteps):
            now = control.at(step) if hasattr(control, "at") else control
            scaled = sampler.scale_model_input(latents, time).to(self.dtype)
            prediction = guided_prediction(
                self.unet, scaled, time, plan.at(step), request.guidance, now
            ).float()
            latents = take_step(sampler, prediction, time, latents, generators)
            _check_finite(latents, prediction, step)
            if on_step is not None:
                on_step(step, latents)
        return latents

    def _settings(
        self, request: Request, choices: ModelDefaults, sampler: Any, clip_skip: int
    ) -> list[ImageSettings]:
        each = zip(request.prompts, request.negative_prompts, request.seeds, strict=True)
        return [
            ImageSettings(
                prompt,
                negative_prompt,
                seed,
                steps=choices.steps,
                guidance_scale=choices.guidance_scale,
                guidance_rescale=choices.guidance_rescale,
                scheduler=scheduler_name(sampler),
                width=request.width,
                height=request.height,
                clip_skip=clip_skip,
                model=self.defaults.name,
                precision=str(self.dtype).removeprefix("torch."),
                own_scheduler=choices.scheduler is None,
            )
            for prompt, negative_prompt, seed in each
        ]


def to_images(pixels: Tensor) -> list[Image]:
    """PIL pictures of (B, 3, H, W) in [-1, 1]; what lies outside is clipped."""
    from PIL import Image

    levels = (pixels / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return [Image.fromarray(picture.numpy()) for picture in levels.permute(0, 2, 3, 1).cpu()]


def _check_finite(latents: Tensor, prediction: Tensor, step: Step) -> None:
    if torch.isfinite(latents).all():
        return
    broken = not torch.isfinite(prediction).all()
    raise NonFiniteError(
        f"The {'UNet' if broken else 'scheduler'} gave NaN or infinity.",
        f"It happened at step {step.index + 1} of {step.count}, time {step.time:g}.",
        "Load the model in float32 or bfloat16, or lower the guidance scale.",
    )
