"""Full-size models against diffusers and transformers: same random weights, how far apart?

    python -m bench.parity                    SD 1.5 and SDXL base: UNets and text encoders
    python -m bench.parity sd21 inpainting    other families
    python -m bench.parity sd15 --latents 64  the real latent size (SDXL's own is 128)

Nothing is downloaded: the reference model is built with random weights from the published
settings, and ours takes the very same tensors, name by name. Prints a markdown table; the exit
status is 1 if an error is above 1e-5. One UNet is in memory at a time, its weights once: SD 1.5
needs 12 GB with the gradients of both, SDXL 14 GB (where gradients are those of the inputs).
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from bench.command import make_parser
from sdcore.text.encoder import CLIPTextEncoder
from sdcore.unet.unet import AddedConditions, UNet

TOLERANCE = 1e-5
TOKENS = 77

# What differs from diffusers' defaults in the published config.json of each family.
SD15 = {"cross_attention_dim": 768, "attention_head_dim": 8}
SD21 = {
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
    "upcast_attention": True,
}
SDXL = {
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 1280 + 6 * 256,
}
REFINER = {
    **SDXL,
    "block_out_channels": [384, 768, 1536, 1536],
    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
    "transformer_layers_per_block": 4,
    "attention_head_dim": [6, 12, 24, 24],
    "cross_attention_dim": 1280,
    "projection_class_embeddings_input_dim": 1280 + 5 * 256,
}


def clip(width: int, layers: int, heads: int, act: str, projection: int | None = None) -> dict:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": act,
        "projection_dim": projection or 512,
        "eos_token_id": 2,
        "architectures": ["CLIPTextModelWithProjection" if projection else "CLIPTextModel"],
    }


VIT_L = clip(768, 12, 12, "quick_gelu")
VIT_H = clip(1024, 23, 16, "gelu")
BIG_G = clip(1280, 32, 20, "gelu", projection=1280)

FAMILIES: dict[str, dict[str, dict[str, Any]]] = {
    "sd15": {"UNet": SD15, "text encoder ViT-L": VIT_L},
    "sd21": {"UNet": SD21, "text encoder OpenCLIP-H": VIT_H},
    "inpainting": {"UNet": {**SD15, "in_channels": 9}},
    "sdxl": {"UNet": SDXL, "text encoder ViT-L": VIT_L, "text encoder 2 OpenCLIP-bigG": BIG_G},
    "refiner": {"UNet": REFINER},
}


@dataclass
class Row:
    family: str
    part: str
    parameters: int
    output: float
    gradient: float
    gradient_of: str
    seconds: float

    def __str__(self) -> str:
        cells = (
            self.family,
            self.part,
            f"{self.parameters / 1e6:,.1f} M",
            f"{self.output:.1e}",
            f"{self.gradient:.1e} ({self.gradient_of})",
            f"{self.seconds:.0f}",
        )
        return f"| {' | '.join(cells)} |"


HEADER = """\
| family | part | parameters | relative error, output | relative error, gradients | seconds |
|---|---|---|---|---|---|"""


def relative_error(found: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """|found - expected| / |expected| over all tensors together, summed in float64."""
    distance = size = 0.0
    for a, b in zip(found, expected, strict=True):
        distance += (a - b).double().square().sum().item()
        size += b.double().square().sum().item()
    return (distance / size) ** 0.5


def shaken(model: nn.Module) -> Any:
    """Norms and biases are born as 1 and 0, which would hide one taken for another."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def unet_pair(settings: dict[str, Any]) -> tuple[Any, UNet]:
    theirs = shaken(UNet2DConditionModel(**settings))
    with torch.device("meta"):
        ours = UNet(UNet.Config.from_dict(theirs.config)).eval()
    ours.load_state_dict(theirs.state_dict(), assign=True)
    return theirs, ours


def text_pair(settings: dict[str, Any]) -> tuple[Any, CLIPTextEncoder]:
    projection = settings["architectures"] == ["CLIPTextModelWithProjection"]
    kind = CLIPTextModelWithProjection if projection else CLIPTextModel
    theirs = shaken(kind(CLIPTextConfig(**settings)))
    with torch.device("meta"):
        ours = CLIPTextEncoder(CLIPTextEncoder.Config.from_dict(settings)).eval()
    state = {CLIPTextEncoder.published_name(key): x for key, x in theirs.state_dict().items()}
    ours.load_state_dict({key: x for key, x in state.items() if key is not None}, assign=True)
    return theirs, ours


def compare_unet(family: str, settings: dict[str, Any], latents_size: int) -> Row:
    start = time.perf_counter()
    theirs, ours = unet_pair(settings)
    config = ours.config
    latents = torch.randn(1, config.in_channels, latents_size, latents_size)
    text, step = torch.randn(1, TOKENS, config.cross_attention_dim), torch.tensor([501])
    leaves = [latents.requires_grad_(), text.requires_grad_()]
    added, kwargs = None, None
    if config.addition_embed_type is not None:
        numbers = 6 if family == "sdxl" else 5
        added = AddedConditions(torch.randn(1, 1280), torch.randint(0, 1024, (1, numbers)))
        kwargs = {"text_embeds": added.pooled_text, "time_ids": added.time_ids}
    size = sum(p.numel() for p in ours.parameters())
    fits = size < 1e9  # the weights and both sets of gradients together: 12 bytes a parameter
    outputs, gradients = compare(
        lambda: [theirs(latents, step, text, added_cond_kwargs=kwargs).sample],
        lambda: [ours(latents, step, text, added=added)],
        parameters(theirs, ours, leaves) if fits else (leaves, leaves),
    )
    of = "parameters and inputs" if fits else "inputs"
    return Row(family, "UNet", size, outputs, gradients, of, time.perf_counter() - start)


def compare_text(family: str, part: str, settings: dict[str, Any]) -> Row:
    start = time.perf_counter()
    theirs, ours = text_pair(settings)
    ids = torch.randint(1, 49406, (2, TOKENS))
    ids[:, 0], ids[0, 9:], ids[1, 60:] = 49406, 49407, 49407

    def run_theirs() -> list[Tensor]:
        out = theirs(ids, output_hidden_states=True)
        pooled = out.text_embeds if ours.config.with_projection else out.pooler_output
        return [out.last_hidden_state, pooled, *out.hidden_states]

    def run_ours() -> list[Tensor]:
        out = ours(ids)
        return [out.last_hidden_state, out.pooled, *out.hidden_states]

    outputs, gradients = compare(run_theirs, run_ours, parameters(theirs, ours, []))
    size = sum(p.numel() for p in ours.parameters())
    return Row(family, part, size, outputs, gradients, "parameters", time.perf_counter() - start)


def parameters(
    theirs: nn.Module, ours: nn.Module, leaves: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters of both in the same order: both hold the same tensors in memory."""
    by_place = {p.data_ptr(): p for p in ours.parameters()}
    pairs = [(p, by_place.pop(p.data_ptr())) for p in theirs.parameters()]
    assert not by_place
    return [*leaves, *(a for a, _ in pairs)], [*leaves, *(b for _, b in pairs)]


def compare(
    theirs: Callable[[], list[Tensor]],
    ours: Callable[[], list[Tensor]],
    wrt: tuple[list[Tensor], list[Tensor]],
) -> tuple[float, float]:
    """The largest relative error of an output, and that of the gradients all together."""
    results = []
    for run, inputs in zip((theirs, ours), wrt, strict=True):
        outputs = run()
        first = outputs[0]
        direction = torch.linspace(-1, 1, first.numel()).view(first.shape)
        loss = (first * direction).sum()
        if len(outputs) > 1:
            loss = loss + outputs[1].square().sum()  # the pooled text of an encoder
        results.append(([x.detach() for x in outputs], torch.autograd.grad(loss, inputs)))
    (expected, expected_gradients), (found, found_gradients) = results
    worst = max(relative_error([a], [b]) for a, b in zip(found, expected, strict=True))
    return worst, relative_error(found_gradients, expected_gradients)


def rows(families: list[str], latents_size: int) -> Iterator[Row]:
    for family in families:
        for part, settings in FAMILIES[family].items():
            torch.manual_seed(0)
            if part == "UNet":
                yield compare_unet(family, settings, latents_size)
            else:
                yield compare_text(family, part, settings)
            gc.collect()


def main() -> int:
    parser = make_parser(__doc__, latents=32)
    parser.add_argument("families", nargs="*", help=f"{', '.join(FAMILIES)} (sd15 sdxl)")
    arguments = parser.parse_args()
    families = arguments.families or ["sd15", "sdxl"]
    if unknown := [name for name in families if name not in FAMILIES]:
        parser.error(f"unknown family {unknown[0]!r}; there are {', '.join(FAMILIES)}")
    print(HEADER, flush=True)
    worst = 0.0
    for row in rows(families, arguments.latents):
        print(row, flush=True)
        worst = max(worst, row.output, row.gradient)
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
