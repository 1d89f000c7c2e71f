"""Page 13: the first steps of training, and guidance."""

from __future__ import annotations

from functools import cache

import torch

from docs.book.book import PROMPTS, SEED, SEEDS, STEPS, Measured, model, term
from docs.book.drawing import FAINT, Svg
from sdcore import UNet, UNetConfig

SCALES, LEARNED, PART = (1.0, 2.0, 4.0, 7.0), 60, 10


@cache
def losses(seed: int) -> list[float]:
    """Of a small UNet that sees eight scenes, as in the page's code."""
    pipe = model()
    scenes = [f"a {x} to the left of a {y}" for x in ("dog", "tree") for y in ("car", "star")] * 2
    clean = pipe(scenes, seed=list(range(8)), steps=4).latents
    text = pipe.text_encoder(pipe.tokenizer(scenes).ids).last_hidden_state.detach()
    torch.manual_seed(seed)
    unet = UNet(
        UNetConfig(block_out_channels=(32, 32, 64, 64), layers_per_block=1, cross_attention_dim=256)
    )
    optimizer, found = torch.optim.Adam(unet.parameters(), lr=2e-3), []
    with torch.enable_grad():
        for _ in range(LEARNED):
            time, noise = torch.randint(1000, (8,)), torch.randn_like(clean)
            a = pipe.scheduler.alphas_cumprod[time][:, None, None, None]
            noisy = a**0.5 * clean + (1 - a) ** 0.5 * noise
            loss = (unet(noisy, time, text) - noise).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
    return found


def measure(language: str) -> Measured:
    pipe, prompt = model(), PROMPTS[language][0][0]
    curve = torch.tensor(losses(0)).unflatten(0, (-1, PART)).mean(1)
    sheet = Svg(900, 250)
    sheet.text(50, 16, term("figure.loss_title", language), size=14, bold=True)
    points = [(PART * (i + 1), float(value)) for i, value in enumerate(curve)]
    sheet.chart({"": points}, 50, 44, 220, 150, term("figure.trained_steps", language), "", 1.0)
    runs = [pipe(prompt, seed=SEED, steps=STEPS, guidance_scale=scale) for scale in SCALES]
    empty = pipe("", seed=SEED, steps=STEPS, guidance_scale=1.0)
    names = [term("figure.empty_prompt", language)]
    names += [term("figure.scale", language, scale=f"{scale:g}") for scale in SCALES]
    for number, (name, each) in enumerate(zip(names, [empty, *runs], strict=True)):
        x = 320 + 116 * number
        sheet.text(x + 54, 44, name, "middle", 13, FAINT)
        sheet.picture(each.images[0], x, 60, 108)
    ends = [torch.tensor(losses(seed)) for seed in range(3)]
    return Measured(
        sheet,
        {"steps": str(LEARNED), "first": f"{curve[0]:.1f}", "last": f"{curve[-1]:.1f}"},
        {
            "13.falls": all(float(e[-PART:].mean()) < 0.7 * float(e[:PART].mean()) for e in ends),
            "13.scales": all(_moves(each) for each, _, _ in PROMPTS[language]),
            "13.by_hand": _by_hand(prompt),
        },
    )


def _moves(prompt: str) -> bool:
    """Whether larger scales move latents further, with every seed."""
    prompts, seeds = [prompt] * len(SEEDS), list(SEEDS)
    each = [model()(prompts, seed=seeds, steps=6, guidance_scale=s).latents for s in SCALES]
    apart = torch.stack([(x - each[0]).square().mean((1, 2, 3)).sqrt() for x in each])
    return bool((apart.diff(dim=0) > 0).all())


def _by_hand(prompt: str) -> bool:
    def latents(words: str, scale: float):
        how = {"seed": SEED, "steps": 1, "scheduler": "ddim", "guidance_scale": scale}
        return model()(words, **how).latents

    empty, plain, guided = latents("", 1.0), latents(prompt, 1.0), latents(prompt, 4.0)
    return torch.allclose(empty + 4 * (plain - empty), guided, atol=1e-2)
