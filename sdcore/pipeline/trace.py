"""A diffusers pipeline that somebody already has, seen and steered from inside.

    encode_prompt -> the words     UNet called -> the step     layer called -> site, q, k, v

For the length of a `with` block PyTorch's own module hooks say when the UNet and each of its
attention layers is called. Within a layer the first call of torch's fused attention, which every
processor of diffusers makes to read the text, is handed to the control. Processors stay where they
are, so LoRA, IP-Adapter, ControlNet, FreeU and the rest go on as they were. Weights are not
touched. At the end of the block, after an error too, all of it is taken off again.

Shapes: B images, T text tokens, D text width.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import Tensor, nn

from sdcore.attention import Site
from sdcore.control.chain import chain
from sdcore.control.heatmaps import WordHeatmaps
from sdcore.control.regions import Regions
from sdcore.control.run_control import ControlLike
from sdcore.errors import UsageError
from sdcore.pipeline.traced_layer import TakesAttention
from sdcore.pipeline.traced_parts import (
    joined_tokens,
    read_tokenizer,
    sites_of,
    tokenizers_of,
    unet_of,
)
from sdcore.pipeline.traced_run import TracedRun, check_hooks
from sdcore.prompt.text import BREAK
from sdcore.text.tokenizer import Tokenizer, Tokens
from sdcore.text.words import as_readings

# Processors that compute the same as the fused one, and hide it.
_PLAIN = ("AttnProcessor", "SlicedAttnProcessor", "XFormersAttnProcessor")


def trace(pipe: Any, control: ControlLike | None = None) -> Trace:
    """Word heatmaps, prompt edits and regions on a pipeline of diffusers, for a `with` block.

        with sdcore.trace(pipe) as t:
            picture = pipe("a fox in the snow").images[0]
        t.heatmaps.overlay(picture, "fox").save("fox.png")

    Args:
        pipe: a StableDiffusionPipeline, StableDiffusionXLPipeline, or one that encodes prompts and
            calls its UNet in their way: image to image, inpainting, ControlNet, PAG.
        control: steers what the prompts read, see `sdcore.RunControl`; may be set later, as
            `t.control`.

    Raises:
        UsageError: a pipeline of another kind, or one that is traced already.
    """
    return Trace(pipe, control)


class Trace:
    """What `trace` sees of a pipeline.

    Attributes:
        control: steers the next run; None only looks.
        steps: that the last run took.
    """

    def __init__(self, pipe: Any, control: ControlLike | None = None) -> None:
        self.control = control
        self.steps = 0
        self._pipe = pipe
        self._unet = unet_of(pipe)
        self._sites = sites_of(self._unet)
        self._tokenizers: list[Tokenizer] | None = None
        self._known: list[tuple[Tensor, list[Tokens]]] = []  # texts that regions made, and whose
        self._undo = ExitStack()
        self._followed: Any = None  # the scheduler whose steps are seen
        self._heatmaps: WordHeatmaps | None = None
        self._why_none = "No prompt has been painted in the `with` block."
        self._run: TracedRun | None = None
        self._layer: TakesAttention | None = None

    @property
    def heatmaps(self) -> WordHeatmaps:
        """The word heatmaps of the last run. UsageError where its words are not known."""
        if self._heatmaps is None:
            raise UsageError(
                "There are no heatmaps.",
                self._why_none,
                "Give the pipeline its prompt as text, or make them from the words: "
                "control=WordHeatmaps(t.tokens(prompt)).",
            )
        return self._heatmaps

    def tokens(self, prompts: str | Sequence[str]) -> list[Tokens]:
        """Prompts as each tokenizer of the pipeline reads them, for a control such as PromptEdit.

        t.control = PromptEdit(t.tokens(["a fox on grass", "a cat on grass"]))
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        convert = getattr(self._pipe, "maybe_convert_prompt", None)
        readings: list[Tokens] = []
        for theirs, ours in zip(tokenizers_of(self._pipe), self._our_tokenizers(), strict=True):
            # a learned word of several vectors is several words to a tokenizer
            own = texts if convert is None else [convert(text, theirs) for text in texts]
            readings.append(ours(own))
        return readings

    def prompt_of(self, regions: Regions) -> dict[str, Tensor]:
        """The arguments of the pipeline that stand for the prompts of regions.

        with sdcore.trace(pipe, regions) as t:
            pipe(**t.prompt_of(regions))
        """
        negatives = regions.negative_prompt.split(BREAK)
        negatives += negatives[-1:] * (len(regions.texts) - len(negatives))
        encoded = [
            self._encode(text, negative)
            for text, negative in zip(regions.texts, negatives, strict=True)
        ]
        found = {
            "prompt_embeds": torch.cat([each[0] for each in encoded], dim=1),  # (1, T, D)
            "negative_prompt_embeds": torch.cat([each[1] for each in encoded], dim=1),
        }
        if len(encoded[0]) > 2:  # SDXL's pooled texts are of the whole picture
            found["pooled_prompt_embeds"] = encoded[0][2]
            found["negative_pooled_prompt_embeds"] = encoded[0][3]
        readings = [self.tokens(text) for text in regions.texts]
        tokens = [joined_tokens(list(each), regions.texts) for each in zip(*readings, strict=True)]
        self._known.append((found["prompt_embeds"], tokens))
        return found

    # --- on and off ----------------------------------------------------------------------------

    def __enter__(self) -> Trace:
        pipe, unet, undo = self._pipe, self._unet, self._undo
        if "encode_prompt" in vars(pipe):
            raise UsageError(
                "This pipeline is traced already.",
                "One block after the other can see its layers.",
                "Leave the other `with` block first, or use its Trace.",
            )
        undo.callback(self._leave)
        if pipe.unet is not unet:  # a compiled one, whose code knows nothing of hooks
            undo.callback(setattr, pipe, "unet", pipe.unet)
            pipe.unet = unet
        called = unet.register_forward_pre_hook(self._unet_called, with_kwargs=True)
        undo.callback(called.remove)
        for name, site in self._sites.items():
            layer = unet.get_submodule(name)
            self._use_fused(layer)
            enter = functools.partial(self._enter_layer, site)
            leave = functools.partial(self._leave_layer, site)
            undo.callback(layer.register_forward_pre_hook(enter).remove)
            undo.callback(layer.register_forward_hook(leave, always_call=True).remove)
        _shadow(undo, pipe, "encode_prompt", self._encoding)
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _use_fused(self, layer: Any) -> None:
        from diffusers.models.attention_processor import AttnProcessor2_0

        old: Any = layer.processor
        if type(old).__name__ in _PLAIN:
            fused = AttnProcessor2_0()
            layer.processor = fused
            self._undo.callback(_put_back, layer, fused, old)

    def _leave(self) -> None:
        self._run, self._followed = None, None
        self._leave_mode()

    # --- a run ---------------------------------------------------------------------------------

    def _encoding(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        bound = inspect.signature(original).bind(*args, **kwargs)
        bound.apply_defaults()
        asked = bound.arguments
        texts = found[0]  # (B, T, D)
        tokens = self._tokens_of_run(asked)
        self._heatmaps = None if tokens is None else WordHeatmaps(tokens)
        controls = [each for each in (self._heatmaps, self.control) if each is not None]
        self._run = TracedRun(
            control=chain(*controls) if len(controls) > 1 else next(iter(controls), None),
            rows=len(texts),
            length=texts.shape[1],
            guided=bool(asked.get("do_classifier_free_guidance", True)),
            tokens=None if tokens is None else tokens[0],
        )
        check_hooks(self.control)
        self._follow_scheduler()
        return found

    def _tokens_of_run(self, asked: dict[str, Any]) -> list[Tokens] | None:
        """The words that a run reads; None, with the reason kept, where nobody can say."""
        texts, prompt, second = (asked.get(n) for n in ("prompt_embeds", "prompt", "prompt_2"))
        if texts is not None:
            known = [tokens for made, tokens in self._known if made is texts]
            self._why_none = "The pipeline was given prompt_embeds, whose words are not known."
            return known[0] if known else None
        if second is not None and second != prompt:
            self._why_none = "The two text encoders read different prompts."
            return None
        return None if prompt is None else as_readings(self.tokens(prompt))

    def _follow_scheduler(self) -> None:
        scheduler = self._pipe.scheduler
        if scheduler is not self._followed:
            self._followed = scheduler
            _shadow(self._undo, scheduler, "step", self._stepping)

    def _stepping(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        out = original(*args, **kwargs)
        run = self._run
        if run is not None and run.ready is not None and run.step is not None:
            latents = out[0]
            changed = run.ready.control.after_step(run.step, latents)
            if changed is not latents:
                latents.copy_(changed)
        return out

    def _unet_called(self, unet: Any, args: Any, kwargs: dict[str, Any]) -> None:
        run = self._run
        if run is None or run.control is None:
            return
        given = inspect.signature(unet.forward).bind(*args, **kwargs).arguments
        latents, text = given["sample"], given["encoder_hidden_states"]
        if run.ready is None:
            run.begin(latents, tuple(self._sites.values()), unet.dtype)
        run.check(latents, text)
        count = getattr(self._pipe, "num_timesteps", None) or len(self._pipe.scheduler.timesteps)
        run.next_step(count, float(given["timestep"]), latents)
        self.steps = run.taken

    # --- a layer -------------------------------------------------------------------------------

    def _enter_layer(self, site: Site, layer: nn.Module, args: Any) -> None:
        run = self._run
        if run is None or run.step is None:
            return
        self._layer = TakesAttention(site, run.grid_at(site), run.rows, run.controls)
        self._layer.__enter__()

    def _leave_layer(self, site: Site, layer: nn.Module, args: Any, out: Any) -> None:
        mode = self._leave_mode()
        if mode is not None and not mode.taken and out is not None:
            name = type(getattr(layer, "processor", layer)).__name__
            raise UsageError(
                f"The attention of {site} cannot be seen.",
                f"Its processor {name} does not use torch's fused attention.",
                "Set one that does: pipe.unet.set_attn_processor(AttnProcessor2_0()).",
            )

    def _leave_mode(self) -> TakesAttention | None:
        mode, self._layer = self._layer, None
        if mode is not None:
            mode.__exit__(None, None, None)  # pyright: ignore[reportUnknownMemberType]
        return mode

    # --- texts ---------------------------------------------------------------------------------

    def _our_tokenizers(self) -> list[Tokenizer]:
        if self._tokenizers is None:
            self._tokenizers = [read_tokenizer(each) for each in tokenizers_of(self._pipe)]
        return self._tokenizers

    def _encode(self, text: str, negative: str) -> Any:
        """What the pipeline itself makes of a prompt and a negative prompt."""
        pipe = self._pipe
        own: Any = getattr(cast(object, type(pipe)), "encode_prompt")  # noqa: B009
        return own(  # not the shadow, which begins a run
            pipe,
            prompt=text,
            device=self._pipe._execution_device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=True,
            negative_prompt=negative,
        )


def _shadow(undo: ExitStack, thing: Any, name: str, seen: Callable[..., Any]) -> None:
    """Let `seen(original, ...)` be called for a method of one object, until the block ends."""
    original = getattr(thing, name)

    @functools.wraps(original)
    def shadow(*args: Any, **kwargs: Any) -> Any:
        return seen(original, *args, **kwargs)

    own: dict[str, Any] = thing.__dict__
    own[name] = shadow
    undo.callback(lambda: own.pop(name, None))


def _put_back(layer: Any, ours: Any, old: Any) -> None:
    if layer.processor is ours:
        layer.processor = old
