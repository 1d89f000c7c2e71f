"""Pictures and figures of pages 5 to 7: the text inside the UNet.

Shapes: B images, C channels, N image tokens, T text tokens, H heads, h w grid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from docs.how_a_prompt_becomes_a_picture.drawing import Sheet, colored, colored_map, hot
from docs.how_a_prompt_becomes_a_picture.guide import Guide, percent
from docs.how_a_prompt_becomes_a_picture.painting import SEED, Painted, fine
from docs.how_a_prompt_becomes_a_picture.reading import PROMPT
from sdcore import TextToImage
from sdcore.diffusion.noise import add_noise, alphas_cumprod_from_config
from sdcore.unet.blocks import Conditions

TIME = 400  # of 1000: the picture is there, and noise over it
PLACES = {"A": (0.55, 0.25), "B": (0.55, 0.75), "C": (0.06, 0.06)}  # down, across

# --- page 5: rows of the attention -------------------------------------------------------------


def rows_of_attention(guide: Guide, run: Painted) -> None:
    maps = run.heatmaps.maps(sites=fine)  # (columns, h, w): start, end, words
    maps = torch.cat([maps[:1], maps[2:], maps[1:2]])  # in the order of the prompt
    spans = run.heatmaps.spans()
    names = ["start", *(span.word for span in spans), "end, padding"]
    height, width = maps.shape[1:]
    side, cell, top = 240, 29, 8
    sheet = Sheet(side + 56 + cell * len(names) + 14, side + 16)
    sheet.paste(run.picture, 8, top, side)
    rows = []
    for name, (down, across) in PLACES.items():
        row, column = int(down * height), int(across * width)
        rows.append(maps[:, row, column])
        x, y = 8 + column * side // width, top + row * side // height
        sheet.frame(x, y, side // width, side // height, "#000000", 2)
        sheet.text(x + side / width / 2, y + side / height / 2, name, "mm", 20, "#000000")
        most = int(rows[-1][1:-1].argmax()) + 1
        guide.figure(f"place_{name}", f"`{names[most]}`")
        guide.figure(f"place_{name}_share", percent(float(rows[-1][most])))
        guide.figure(f"place_{name}_end", percent(float(rows[-1][-1])))
    shares = torch.stack(rows)  # (3, columns)
    told = ("fox", "cat", "to", "left")
    fox, cat, to, left = (shares[:, names.index(word)].tolist() for word in told)
    words = shares[:, 1:-1]
    for place, *read in zip("AB", to, left, strict=False):
        guide.figure(f"{place}_reads_to", percent(read[0]))
        guide.figure(f"{place}_reads_left", percent(read[1]))
    guide.figure("place_C_start", percent(float(shares[2, 0])))
    own = fox[0] == float(words[0].max()) and cat[1] == float(words[1].max())
    guide.claim("5: of the words, A reads fox most, B cat", own)
    guide.claim("5: A reads fox, and the others do not", fox[0] > 0.1 > 0.01 > max(fox[1:]))
    guide.claim("5: B reads cat, and the others do not", cat[1] > 0.1 > 0.01 > max(cat[0], cat[2]))
    next_two = all(words[i].topk(3)[0][1:].tolist() == [to[i], left[i]] for i in range(2))
    guide.claim("5: to and left are what A and B read next", next_two and min(left[:2]) > 0.1)
    guide.claim("5: C reads neither to nor left", max(to[2], left[2]) < 0.01)
    guide.claim("5: C reads neither animal", max(fox[2], cat[2]) < 0.01)
    sheet.matrix(
        shares, side + 56, top + 112, cell, rows=list(PLACES), columns=names, numbers=True, size=16
    )
    sheet.text(side + 56, top + 112 + 3 * cell + 22, "one row: what one place reads, in %", size=15)
    guide.picture("05_cross_attention.png", sheet.image)
    guide.figure("image_tokens", str(height * width))
    guide.figure("text_tokens", str(run.heatmaps.marks.shape[1]))
    ones = torch.ones(len(PLACES))
    guide.claim("5: each row adds up to one", torch.allclose(shares.sum(1), ones, atol=1e-4))
    ends, blue = shares[:, -1], float(shares[2, names.index("blue")])
    apart = bool(ends[2] > 0.5 and ends[:2].max() < 0.1)
    guide.claim("5: end and padding are most of what C reads, little of what A and B read", apart)
    guide.claim(
        "5: C reads hardly a word, blue neither", bool(words[2].sum() < 0.05) and blue < 0.01
    )
    guide.claim("5: every place gives some to the start token", bool(shares[:, 0].min() > 0.1))
    guide.claim("5: places read differently", bool(torch.pdist(shares).min() > 0.01))


# --- page 6: grid to sequence and back ---------------------------------------------------------


class Look:
    """Keeps what one token of one self-attention layer reads of the others: (h, w)."""

    def __init__(self, site: str, token: int) -> None:
        self.site, self.token, self.row = site, token, torch.empty(0)

    def __call__(self, site, grid, q, k, v, attend):
        if str(site) == self.site:
            identity = torch.eye(k.shape[2]).expand(*k.shape[:2], -1, -1)
            row = attend(q[:, :, self.token, None], k, identity)  # (1, H, 1, N)
            self.row = row.mean(dim=1)[0, 0].unflatten(0, grid)
        return attend(q, k, v)


def noisy(pipe: TextToImage, run: Painted) -> Tensor:
    """The painted latents with the noise of TIME over them."""
    alphas = alphas_cumprod_from_config(pipe.scheduler.config)
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn(run.latents[-1].shape, generator=generator)
    return add_noise(run.latents[-1], noise, TIME, alphas)


def conditions(pipe: TextToImage, latents: Tensor) -> Conditions:
    text = pipe.text_encoder(pipe.tokenizer(PROMPT).ids).last_hidden_state
    return Conditions(pipe.unet.embed_time(TIME, latents, None), text, None, None)


def spatial_transformer(guide: Guide, pipe: TextToImage, run: Painted) -> None:
    latents = noisy(pipe, run)
    given = conditions(pipe, latents)
    x, _ = pipe.unet.down_blocks[0](pipe.unet.conv_in(latents), given)
    block = pipe.unet.down_blocks[1]
    before = block.resnets[0](x, given.time)  # (1, C, h, w)
    height, width = before.shape[2:]
    row, column = int(PLACES["A"][0] * height), int(PLACES["A"][1] * width)
    look = Look("down.1.0.0 self", row * width + column)
    after = block.attentions[0](before, given.text, None, look)

    side, top = 176, 30
    cell, gap = side // width, 26
    sheet = Sheet(4 * side + 3 * gap + 24, top + side + 76)
    titles = [
        "noisy latents",
        f"features {height} x {width}",
        "A asks: who is read?",
        "features out",
    ]
    panels = [
        colored_map(latents[0]),
        colored_map(before[0]),
        hot(look.row, 0.0, float(look.row.max())),
        colored_map(after[0]),
    ]
    for number, (title, panel) in enumerate(zip(titles, panels, strict=True)):
        at = 12 + number * (side + gap)
        sheet.text(at, top / 2, title, size=16)
        sheet.cells(panel, at, top, side // panel.shape[1])
    for number in (1, 2):
        at = 12 + number * (side + gap)
        sheet.frame(at + column * cell, top + row * cell, cell, cell, "#000000", 2)
    y, small = top + side + 46, (4 * side + 3 * gap) // (height * width)
    sheet.text(12, y - 16, f"the same features as a sequence of {height * width} tokens:", size=15)
    sheet.cells(colored(before[0].flatten(1).T)[None], 12, y, small)
    marked = 12 + (row * width + column) * small
    sheet.frame(marked, y, small, small, "#000000", 2)
    guide.picture("06_spatial_transformer.png", sheet.image)
    guide.figure("token_a", str(row * width + column))
    guide.figure("row_a", str(row))
    guide.figure("column_a", str(column))
    guide.figure("width_a", str(width))
    guide.figure("channels_a", str(before.shape[1]))
    same = torch.equal(
        before.permute(0, 2, 3, 1).flatten(1, 2).unflatten(1, (height, width)),
        before.permute(0, 2, 3, 1),
    )
    guide.claim("6: to a sequence and back changes nothing", same)
    others = look.row.flatten().clone()
    others[row * width + column] = 0
    beyond = look.row.clone()
    beyond[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = 0
    other_half = float(look.row[:, width // 2 :].sum())
    most = int(others.argmax())
    guide.claim("6: a place that is no neighbour is read most", float(beyond.flatten()[most]) > 0)
    guide.claim("6: places beyond the neighbours are read", bool(beyond.sum() > 0.1))
    guide.claim(
        "6: the other half of the picture is read", column < width // 2 and other_half > 0.05
    )
    guide.figure("self_share", percent(float(look.row[row, column])))
    guide.figure("beyond_share", percent(float(beyond.sum())))
    guide.figure("other_half_share", percent(other_half))


# --- page 7: all of the UNet -------------------------------------------------------------------


def walk(pipe: TextToImage, latents: Tensor) -> list[tuple[str, bool, Tensor]]:
    """Name, whether the text is read there, and the map (1, C, h, w) after each block."""
    unet, given = pipe.unet, conditions(pipe, latents)
    x = unet.conv_in(latents)
    seen, kept = [("conv in", False, x)], [x]
    for block in unet.down_blocks:
        x, more = block(x, given)
        kept += more
        last = more[-2] if block.downsamplers is not None else x
        seen.append(("down", block.attentions is not None, last))
    x = unet.mid_block(x, given)
    seen.append(("mid", True, x))
    for level, block in zip(reversed(unet.levels), unet.up_blocks, strict=True):
        mine = [kept.pop() for _ in range(level.layers + 1)]
        size = (kept[-1].shape[2], kept[-1].shape[3]) if kept else None
        inside = x
        for i, resnet in enumerate(block.resnets):  # what it makes before the grid is doubled
            inside = resnet(torch.cat([inside, mine[i]], dim=1), given.time)
            if block.attentions is not None:
                inside = block.attentions[i](inside, given.text)
        seen.append(("up", block.attentions is not None, inside))
        x = block(x, mine, size, given)
    return seen


def maps_of_the_unet(guide: Guide, pipe: TextToImage, run: Painted) -> None:
    latents = noisy(pipe, run)
    seen, levels = walk(pipe, latents), len(pipe.unet.levels)
    prediction = pipe.unet(latents, TIME, conditions(pipe, latents).text)
    down, mid, up = seen[1 : 1 + levels], seen[1 + levels], seen[2 + levels :]
    side, across, line = 118, 168, 168
    sheet = Sheet(812, (levels + 1) * line - 8)

    def panel(name: str, text: bool, x: Tensor, at: int, y: int) -> None:
        label = f"{x.shape[1]} x {x.shape[2]} x {x.shape[3]}"
        sheet.text(at, y - 24, name + (", reads text" if text else ""), size=14)
        sheet.text(at, y - 9, label, size=13, color="#555555")
        sheet.cells(colored_map(x[0]), at, y, side // x.shape[3])

    for depth, (one, other) in enumerate(zip(down, reversed(up), strict=True)):
        y, aside = 40 + depth * line, across - 24 + 34 * depth
        left, right = 12 + aside, 800 - side - aside
        panel(*one, left, y)
        panel(*other, right, y)
        sheet.draw.line(
            (left + side + 6, y + side // 2, right - 8, y + side // 2), fill="#8a8f94", width=2
        )
        sheet.text((left + side + right) / 2, y + side / 2 - 12, "kept", "mm", 14, "#555555")
    panel("noisy latents", False, latents, 12, 40)
    panel("prediction", False, prediction, 812 - side - 12, 40)
    panel(*mid, 406 - side // 2, 40 + levels * line)
    guide.picture("07_unet.png", sheet.image)
    guide.figure("grids", ", ".join(f"{x.shape[2]} x {x.shape[3]}" for _, _, x in down))
    guide.figure("channels", ", ".join(str(x.shape[1]) for _, _, x in down))
    guide.figure("reading", str(sum(len(b.attentions or ()) for b in _blocks(pipe))))
    guide.figure("weights", f"{sum(p.numel() for p in pipe.unet.parameters()) / 1e6:.1f}")
    cross = sum(p.numel() for n, p in pipe.unet.named_parameters() if ".attn2." in n)
    whole = sum(p.numel() for p in pipe.unet.parameters())
    guide.figure("cross_weights", percent(cross / whole))
    guide.claim("7: the finest level reads no text", not down[0][1] and not up[-1][1])
    guide.claim("7: the others read it", all(text for _, text, _ in [*down[1:], *up[:-1]]))


def _blocks(pipe: TextToImage) -> list:
    return [*pipe.unet.down_blocks, pipe.unet.mid_block, *pipe.unet.up_blocks]
