"""Pictures and figures of pages 1 to 4: what a text network makes of the words.

Shapes: B batch, T words or tokens, D width, H heads, V words to choose from.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from docs.how_a_prompt_becomes_a_picture.drawing import Sheet
from docs.how_a_prompt_becomes_a_picture.guide import PICTURES, Guide, percent
from sdcore import BACKENDS, CrossAttention, Recurrence, TextToImage, causal_mask, sinusoid
from train.chart import Point, line_chart

PROMPT = "a fox to the left of a cat in flat style, light blue background"
OTHER = {"fox": "dog", "cat": "dog"}  # what a word is exchanged for; every other one for "fox"

# --- page 1: one vector carries the sentence ---------------------------------------------------

WORDS, LENGTH, STATE, SEEDS = 16, 12, 24, 3
STEPS, BATCH = 500, 64


class Recall(nn.Module):
    """Words x (B, T, D) to a guess of each of them (B, T, V), from one state or by attention."""

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "attention":
            self.read = CrossAttention(STATE, heads=1, text_width=width)
            self.guess = nn.Linear(STATE, WORDS)
            self.register_buffer("marks", sinusoid(torch.arange(LENGTH), width))
            self.register_buffer("asked", sinusoid(torch.arange(LENGTH), STATE))
        else:
            self.read = Recurrence(kind, width, STATE)
            self.guess = nn.Linear(STATE, LENGTH * WORDS)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "attention":  # each place asks for itself
            return self.guess(self.read(self.asked.expand(len(x), -1, -1), x + self.marks))
        states, _ = self.read(x)
        return self.guess(states[:, -1]).unflatten(1, (LENGTH, WORDS))


def recall(guide: Guide, pipe: TextToImage) -> None:
    vocabulary = pipe.text_encoder.text_model.embeddings.token_embedding.weight.detach()
    names = "fox cat dog car house tree star heart moon apple fish bird boat robot lion panda"
    ids = [int(pipe.tokenizer(name).ids[0, 1]) for name in names.split()]
    vectors = F.layer_norm(vocabulary[ids], (vocabulary.shape[1],))  # (V, D)
    lines, at_end = {}, {}
    for kind, name in (("rnn", "RNN"), ("lstm", "LSTM"), ("attention", "attention")):
        shares = torch.stack([_recalled(kind, vectors, seed) for seed in range(SEEDS)])
        shares = 100 * shares.flip(1)  # (seeds, T), the last word first
        lines[name] = [
            Point(ago, float(each.mean()), float(each.min()), float(each.max()))
            for ago, each in enumerate(shares.T)
        ]
        at_end[kind] = shares.mean(dim=0)
        guide.figure(f"{kind}_last", f"{shares[:, 0].mean():.0f} %")
        guide.figure(f"{kind}_first", f"{shares[:, -1].mean():.0f} %")
        guide.figure(f"{kind}_all", f"{shares.mean():.0f} %")
    line_chart(
        PICTURES / "01_recall.svg",
        lines,
        title=f"Which of {WORDS} words stood there? A text of {LENGTH} words is read",
        x_label="how many words ago it was read",
        y_label="answered rightly, %",
        y_ticks=(0, 20, 40, 60, 80, 100),
    )
    print("  01_recall.svg")
    for kind in ("rnn", "lstm"):
        forgets = at_end[kind][0] > at_end[kind][-1] + 10
        guide.claim(f"1: {kind} knows the last word better than the first", bool(forgets))
    guide.claim("1: attention recalls every place better", bool(at_end["attention"].min() > 95))


def _recalled(kind: str, vectors: Tensor, seed: int) -> Tensor:
    """The share (T,) of words that a network recalls, by their place."""
    torch.manual_seed(seed)
    model = Recall(kind, vectors.shape[1])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with torch.enable_grad():
        for _ in range(STEPS):
            words = torch.randint(WORDS, (BATCH, LENGTH))
            loss = F.cross_entropy(model(vectors[words]).flatten(0, 1), words.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    words = torch.randint(WORDS, (2000, LENGTH))
    return (model(vectors[words]).argmax(dim=-1) == words).float().mean(dim=0)


# --- pages 2 and 3: who reads whom -------------------------------------------------------------


def names_of(pipe: TextToImage) -> list[str]:
    """The tokens of the prompt, start and end included, as they are written under a picture."""
    return ["start", *(span.word for span in pipe.tokenizer(PROMPT).spans[0]), "end"]


def text_attention(pipe: TextToImage, tokens: int) -> Tensor:
    """Attention of every layer and head of the text encoder: (layers, H, T, T)."""
    encoder, ids = pipe.text_encoder, pipe.tokenizer(PROMPT).ids
    encoding, mask, maps = encoder(ids), causal_mask(ids.shape[1]), []
    identity = torch.eye(ids.shape[1]).expand(1, encoder.config.num_attention_heads, -1, -1)
    for layer, x in zip(
        encoder.text_model.encoder.layers, encoding.hidden_states[:-1], strict=True
    ):
        attention, x = layer.self_attn, layer.layer_norm1(x)
        q, k = (
            project(x).unflatten(2, (attention.heads, -1)).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj)
        )
        maps.append(BACKENDS["reference"](q, k, identity, mask)[0])
    return torch.stack(maps)[:, :, :tokens, :tokens]


def attention_maps(guide: Guide, pipe: TextToImage) -> None:
    names = names_of(pipe)
    maps = text_attention(pipe, len(names))  # (layers, H, T, T)
    layer, head = _most_varied(maps)
    guide.figure("layer", str(layer + 1))
    guide.figure("head", str(head + 1))
    guide.figure("layers", str(len(maps)))
    guide.figure("heads", str(maps.shape[1]))
    guide.figure("largest", percent(float(maps[:, :, 1:].amax(dim=-1).mean())))
    _one_head(guide, maps[layer, head], names)
    _all_heads(guide, maps[layer], names)
    block, start = maps[layer, head], names.index("background")
    reads = int(block[start, : start + 1].argmax())
    guide.figure("background_reads", f"`{names[reads]}`")
    guide.figure("background_reads_share", percent(float(block[start, reads])))
    guide.claim("2: no token reads a later one", bool((maps.triu(1) == 0).all()))
    ones = torch.ones(maps.shape[:-1])
    guide.claim("2: every row adds up to one", torch.allclose(maps.sum(-1), ones, atol=1e-5))


def _most_varied(maps: Tensor) -> tuple[int, int]:
    """Layer and head in which the tokens read the largest number of different tokens."""
    others = (1 - torch.eye(maps.shape[-1])) * maps
    varied = [
        (len(set(head.argmax(dim=-1)[head.amax(dim=-1) > 0.5].tolist())), -layer, -number)
        for layer, heads in enumerate(others)
        for number, head in enumerate(heads)
    ]
    _, layer, number = max(varied)
    return -layer, -number


def _one_head(guide: Guide, weights: Tensor, names: list[str]) -> None:
    cell = 38
    sheet = Sheet(130 + cell * len(names) + 20, 128 + cell * len(names) + 12)
    sheet.text(14, 16, "each row asks; what it reads, in %:", size=15)
    sheet.matrix(
        weights, 130, 128, cell, rows=names, columns=names, numbers=True, size=17, causal=True
    )
    guide.picture("02_self_attention.png", sheet.image)


def _all_heads(guide: Guide, weights: Tensor, names: list[str]) -> None:
    cell, left, top = 18, 92, 106
    across, down = left + cell * len(names) + 8, top + cell * len(names) + 14
    rows = -(-len(weights) // 2)
    sheet = Sheet(2 * across, rows * down)
    for head, each in enumerate(weights):
        x, y = head % 2 * across + left, head // 2 * down + top
        sheet.text(x - left + 10, y - top + 16, f"head {head + 1}", size=17)
        sheet.matrix(each, x, y, cell, rows=names, columns=names, size=14, causal=True)
        read = int(each[names.index("cat")].argmax())
        guide.figure(f"cat_head_{head + 1}", f"`{names[read]}`")
        guide.figure(f"end_head_{head + 1}", f"`{names[int(each[-1].argmax())]}`")
    guide.picture("03_heads.png", sheet.image)
    unlike = torch.pdist(weights.flatten(1))
    guide.claim("3: no two heads look alike", bool((unlike > 0.5).all()))


# --- page 4: positions, and what each token can know -------------------------------------------


def positions(guide: Guide, pipe: TextToImage) -> None:
    names = names_of(pipe)
    learned = pipe.text_encoder.text_model.embeddings.position_embedding.weight
    waves = sinusoid(torch.arange(len(learned)), learned.shape[1])
    known = knowledge(pipe, len(names))
    cell, small, top = 10, 7, 128
    sheet = Sheet(880, top + small * len(learned) + 66)
    for x, title, vectors in ((24, "waves", waves), (276, "learned", learned)):
        near = F.cosine_similarity(vectors[:, None], vectors[None], dim=-1)
        sheet.text(x, top - 40, f"places, {title}:", size=15)
        sheet.text(x, top - 20, f"alike (dark) or not, 1 to {len(learned)}", size=13)
        sheet.matrix(near, x, top, small)
        side = small * len(learned)
        sheet.text(x, top + side + 14, "place 1", size=13)
        sheet.text(x + side, top + side + 14, str(len(learned)), "rm", size=13)
    cell = 14
    x = 880 - cell * len(names) - 12
    sheet.matrix(known, x, top, cell, rows=names, columns=names, size=13)
    sheet.text(x - 74, top + cell * len(names) + 16, "row: this word is exchanged;", size=13)
    sheet.text(x - 74, top + cell * len(names) + 34, "column: whose vector changes (dark)", size=13)
    guide.picture("04_positions.png", sheet.image)

    near = F.cosine_similarity(learned[:, None], learned[None], dim=-1)
    guide.figure("positions", str(len(learned)))
    guide.figure("neighbours_learned", f"{float(near.diagonal(1).mean()):.2f}")
    far = near[torch.ones(near.shape).triu(8).bool()]
    guide.figure("far_learned", f"{float(far.mean()):.2f}")
    wave = F.cosine_similarity(waves[:-1], waves[1:])
    guide.figure("neighbours_waves", f"{float(wave.mean()):.2f}")
    ruler = wave.mean() > near.diagonal(1).mean()
    guide.claim("4: waves of neighbours are more alike than what was learned", bool(ruler))
    earlier = known.tril(-1)
    guide.claim("4: nothing before an exchanged word changes", bool((earlier == 0).all()))
    guide.claim("4: the end token learns of every word", bool((known[1:-1, -1] > 0).all()))
    half = len(learned) // 2
    early, late = near[:half, :half].diagonal(1).mean(), near[half:, half:].diagonal(1).mean()
    guide.figure("half", str(half))
    guide.figure("neighbours_early", f"{float(early):.2f}")
    guide.figure("neighbours_late", f"{float(late):.2f}")
    guide.claim("4: early places are more like their neighbours", bool(early > late + 0.2))
    told = [names[i] for i in known[:, -1].topk(2)[1].tolist()]
    guide.claim("5: the end token depends on flat most, then on light", told == ["flat", "light"])
    before_to = known[: names.index("to"), names.index("to")]
    guide.claim("5: to depends on fox most", names[int(before_to.argmax())] == "fox")
    before_left = known[: names.index("left"), names.index("left")]
    guide.claim(
        "5: left depends on to most, of the words before it",
        names[int(before_left.argmax())] == "to",
    )


def knowledge(pipe: TextToImage, tokens: int) -> Tensor:
    """How much the vector at each token (column) changes with each word (row): (T, T), 0 to 1."""
    ids = pipe.tokenizer(PROMPT).ids
    spans = pipe.tokenizer(PROMPT).spans[0]
    before = pipe.text_encoder(ids).last_hidden_state[0]
    changed = ids.repeat(tokens, 1)
    for span in spans:
        other = OTHER.get(span.word, "fox")
        changed[span.positions[0], span.positions[0]] = pipe.tokenizer(other).ids[0, 1]
    after = torch.cat([pipe.text_encoder(row[None]).last_hidden_state for row in changed])
    moved = (after - before).norm(dim=-1) / before.norm(dim=-1)  # (T, all tokens)
    return moved[:, :tokens].clamp(max=1)
