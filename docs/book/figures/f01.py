"""Page 1: the machine as a map, with thumbnails of a real run."""

from __future__ import annotations

import torch

from docs.book.book import PROMPTS, SEED, STEPS, Measured, model, run, term
from docs.book.drawing import FAINT, Svg, colored_map
from sdcore import to_images

SHOWN = (0, 2, 4, STEPS - 1)


def measure(language: str) -> Measured:
    prompt = PROMPTS[language][0][0]
    painted, pipe = run(language), model()

    def word(name: str, **values: object) -> str:
        return term(f"figure.{name}", language, **values)

    sheet = Svg(820, 330)
    for x, wide, name in ((12, 130, "prompt"), (176, 100, "tokens"), (310, 120, "encoder")):
        sheet.box(x, 24, wide, 56, "#eef3f8", round_by=6)
        sheet.text(x + wide / 2, 43, word(name), "middle", 14, bold=True)
    ids = pipe.tokenizer(prompt).ids[0, 1:6].tolist()
    sheet.text(77, 64, prompt, "middle", 10, FAINT)
    sheet.text(226, 64, " ".join(str(i) for i in ids[:3]) + " …", "middle", 11, FAINT)
    sheet.text(370, 64, f"{word('text')} (T, D)", "middle", 11, FAINT)
    sheet.arrow(142, 52, 174, 52)
    sheet.arrow(276, 52, 308, 52)
    sheet.box(176, 104, 460, 110, "#fbf6ec", round_by=8)
    sheet.text(190, 120, word("loop", steps=STEPS), size=12, color=FAINT)
    for x, name, small in ((330, "unet", "predicts"), (510, "step", "")):
        sheet.box(x - 70, 138, 140, 52, "#ffffff", round_by=6)
        sheet.text(x, 156 if small else 164, word(name), "middle", 14, bold=bool(small))
        if small:
            sheet.text(x, 176, word(small), "middle", 11, FAINT)
    sheet.arrow(400, 164, 438, 164)
    sheet.arrow(370, 80, 370, 136)
    sheet.line((510, 190), (510, 204), (330, 204), color=FAINT)
    sheet.arrow(330, 204, 330, 192)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(SEED))
    sheet.cells(colored_map(noise[0]), 60, 130, 68)
    sheet.text(94, 210, word("noise"), "middle", 12)
    sheet.arrow(134, 164, 258, 164)
    sheet.arrow(580, 164, 654, 164)
    sheet.box(656, 138, 68, 52, "#eef3f8", round_by=6)
    sheet.text(690, 164, word("decoder"), "middle", 13, bold=True)
    sheet.arrow(724, 164, 740, 164)
    sheet.picture(painted.picture, 742, 130, 68)
    sheet.text(776, 210, word("picture"), "middle", 12)
    for number, index in enumerate(SHOWN):
        x = 176 + 118 * number
        seen = to_images(pipe.autoencoder.decode(painted.latents[index]))[0]
        sheet.picture(seen, x, 232, 76)
        sheet.text(x + 38, 320, word("after_step", step=index + 1), "middle", 11, FAINT)
    size = painted.picture.size
    return Measured(
        sheet,
        {"steps": str(STEPS), "size": f"{size[0]} x {size[1]}"},
        {
            "1.steps": len(painted.latents) == STEPS,
            "1.size": size == tuple(pipe.autoencoder.factor * n for n in noise.shape[:1:-1]),
        },
    )
