"""Page 13: the first steps of training, and guidance."""

from __future__ import annotations

from functools import cache

import torch

from docs.book.book import SEED, Measured, every_run, left_by, model, term
from docs.book.drawing import FAINT, Svg
from sdcore import TextToImageResult, to_images

SCALES, STEPS, PART = (1.0, 2.0, 4.0, 7.0), 5, 5
TIME = 400


def losses(seed: int) -> torch.Tensor:
    """Of the page's code, with another seed."""
    return torch.tensor(left_by(13, seed)["losses"])


@cache
def guided(language: str) -> list[TextToImageResult]:
    """`every_run` at each scale."""
    prompts, seeds = every_run(language)
    pipe = model()
    return [pipe(prompts, seed=seeds, steps=STEPS, guidance_scale=scale) for scale in SCALES]


def _task() -> dict[str, torch.Tensor]:
    """One scene as training shows it to the page's UNet, and what that makes of it: latents."""
    names, noise = left_by(13), torch.Generator().manual_seed(0)
    clean, text = names["clean"][:1], names["text"][:1]
    a = float(model().scheduler.alphas_cumprod[TIME])
    noisy = a**0.5 * clean + (1 - a) ** 0.5 * torch.randn(clean.shape, generator=noise)
    guess = names["unet"](noisy, TIME, text)
    taken = (noisy - (1 - a) ** 0.5 * guess) / a**0.5
    return {"task_shown": noisy, "task_answer": taken, "task_wanted": clean}


def measure(language: str) -> Measured:
    curve = losses(0).unflatten(0, (-1, PART)).mean(1)
    sheet = Svg(900, 420)
    sheet.text(50, 16, term("figure.loss_title", language), size=14, bold=True)
    points = [(PART * (i + 1), float(value)) for i, value in enumerate(curve)]
    sheet.chart({"": points}, 50, 44, 220, 150, term("figure.trained_steps", language), "", 1.0)
    empty = model()("", seed=SEED, steps=STEPS, guidance_scale=1.0)
    names = [term("figure.empty_prompt", language)]
    names += [term("figure.scale", language, scale=f"{scale:g}") for scale in SCALES]
    for number, (name, each) in enumerate(zip(names, [empty, *guided(language)], strict=True)):
        x = 320 + 116 * number
        sheet.text(x + 54, 44, name, "middle", 13, FAINT)
        sheet.picture(each.images[0], x, 60, 108)
    for number, (name, latents) in enumerate(_task().items()):
        x = 320 + 116 * number
        sheet.text(x + 54, 214, term(f"figure.{name}", language), "middle", 13, FAINT)
        sheet.picture(to_images(model().autoencoder.decode(latents))[0], x, 230, 108)
    said = term("figure.task", language, time=TIME, steps=len(losses(0)))
    sheet.text(320, 356, said, size=12, color=FAINT)
    ends = [losses(seed) for seed in range(3)]
    return Measured(
        sheet,
        {"steps": str(len(ends[0])), "first": f"{curve[0]:.1f}", "last": f"{curve[-1]:.1f}"},
        {
            "13.falls": all(float(e[-PART:].mean()) < 0.7 * float(e[:PART].mean()) for e in ends),
            "13.scales": _moves(language),
            "13.by_hand": _by_hand(language),
        },
    )


def _moves(language: str) -> bool:
    """Whether larger scales move latents further, in every run."""
    each = [result.latents for result in guided(language)]
    apart = torch.stack([(x - each[0]).square().mean((1, 2, 3)).sqrt() for x in each])
    return bool((apart.diff(dim=0) > 0).all())


def _by_hand(language: str) -> bool:
    """Whether one step of the library is the formula's, with an empty and a negative prompt."""
    prompts, seeds = every_run(language)

    def latents(words: list[str], scale: float, negative: str | None = None) -> torch.Tensor:
        how: dict = {"steps": 1, "scheduler": "ddim", "guidance_scale": scale}
        return model()(words, seed=seeds, negative_prompt=negative, **how).latents

    plain, off = latents(prompts, 1.0), []
    for negative, scale in (("", 7.0), (prompts[0], 2.0)):
        away = latents([negative] * len(prompts), 1.0)
        theirs = latents(prompts, scale, negative or None)
        by_hand = away + scale * (plain - away)
        off.append(float((by_hand - theirs).abs().max() / theirs.std()))
    return max(off) < 1e-3
