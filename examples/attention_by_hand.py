"""The attention function by hand: what every layer computes, and a control that writes it out."""

import torch

from sdcore import TextToImage

pipe = TextToImage.embedded()
prompt = "a penguin to the left of a red apple in flat style, light blue background"
apple = pipe.tokenizer(prompt).spans[0][8].positions[0]  # the token that the word became
seen = []


def by_hand(site, grid, q, k, v, attend):
    """Called by each attention layer; q (B, H, N, D) of the picture, k and v (B, H, T, D)."""
    if site.kind != "cross":  # self-attention: the picture reads itself
        return attend(q, k, v)
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5  # (B, H, N, T)
    weights = scores.softmax(dim=-1)  # what each place reads of each token, adding up to 1
    seen.append(weights[-1, :, :, apple].mean(0).unflatten(0, grid))  # (h, w) of the word
    return weights @ v


by_layers = pipe(prompt, seed=1, steps=4)
written_out = pipe(prompt, seed=1, steps=4, control=by_hand)
apart = (by_layers.latents - written_out.latents).abs().max()
print(f"{len(seen)} calls; the latents are {apart:.1e} apart")

finest = max(grid.shape[0] for grid in seen)
heat = torch.stack([grid for grid in seen if grid.shape[0] == finest]).mean(0)
print("the apple is read at (row, column)", divmod(int(heat.argmax()), heat.shape[1]))
