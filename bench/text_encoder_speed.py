"""How long text encoders take against the length of the text: in parallel, or word by word.

    python -m bench.text_encoder_speed

Fresh networks with the embedded model's sizes: the Transformer, and LSTM and RNN of as many layers
and weights. The recurrent ones also run with torch's own layers inside, whose loop is not Python's
(cuDNN's on a GPU). Medians of rounds in which all take turns, with half of the middle half's range.
With `--threads 1` on a CPU the processor's time is taken, which other programs hardly lengthen.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from bench.command import main, make_parser
from sdcore import CLIPTextConfig, CLIPTextEncoder
from sdcore.errors import UsageError
from sdcore.files.atomic import json_writer, replace_file
from sdcore.pipeline.text_to_image import EMBEDDED
from sdcore.text.recurrent_encoder import RecurrentTextConfig, RecurrentTextEncoder


class TorchRecurrence(nn.Module):
    """torch.nn.LSTM or RNN in the place of a `Recurrence`."""

    def __init__(self, layer: nn.LSTM | nn.RNN) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, real: None) -> tuple[Tensor, Any]:
        shown, state = self.layer(x.transpose(0, 1))
        return shown.transpose(0, 1), state


def make_networks(longest: int, device: str) -> dict[str, nn.Module]:
    """Fresh text encoders with the embedded model's sizes, and torch's recurrent layers of ours."""
    settings = json.loads((EMBEDDED / "text_encoder" / "config.json").read_text("utf-8"))
    clip = replace(CLIPTextConfig.from_dict(settings), max_position_embeddings=longest)
    networks: dict[str, nn.Module] = {"transformer": CLIPTextEncoder(clip)}
    for cell in ("lstm", "rnn"):
        networks[cell] = RecurrentTextEncoder(RecurrentTextConfig.matching(clip, cell))
        fused = RecurrentTextEncoder(RecurrentTextConfig.matching(clip, cell))
        for layer in cast(Any, fused.text_model.layers):
            cls = torch.nn.LSTM if cell == "lstm" else torch.nn.RNN
            layer.recurrence = TorchRecurrence(cls(clip.hidden_size, fused.config.state_size))
        networks[f"{cell}, torch's"] = fused
    return {name: network.to(device).eval() for name, network in networks.items()}


def time_networks(
    networks: dict[str, nn.Module], lengths: Sequence[int], batches: Sequence[int], rounds: int
) -> list[dict[str, Any]]:
    """Milliseconds to encode a batch, medians; `spread` is half the range of the middle half."""
    device = next(next(iter(networks.values())).parameters()).device
    wait: Callable[[], object] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    rows = []
    for batch in batches:
        for length in lengths:
            ids = torch.randint(700, (batch, length), device=device)
            times: dict[str, list[float]] = {name: [] for name in networks}
            for turn in range(rounds + 1):  # the first one warms up
                for name, network in networks.items():
                    wait()
                    began = clock()
                    with torch.no_grad():
                        network(ids)
                    wait()
                    if turn:
                        times[name].append(1000 * (clock() - began))
            for name, spent in times.items():
                low, middle, high = statistics.quantiles(spent, n=4)
                row = {"network": name, "batch": batch, "tokens": length}
                rows.append(row | {"ms": middle, "spread": (high - low) / 2})
    return rows


def run(arguments: argparse.Namespace) -> None:
    if arguments.rounds < 2 or min(*arguments.lengths, *arguments.batches) < 1:
        what = f"--rounds {arguments.rounds}, or a length or batch below 1"
        raise UsageError(what, "there is nothing to take a median of", "--rounds 9")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    networks = make_networks(max(arguments.lengths), arguments.device)
    rows = time_networks(networks, arguments.lengths, arguments.batches, arguments.rounds)
    device = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else "CPU"
    where = f"{device}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    result = {"where": where, "rows": rows}
    replace_file(arguments.out / "text_encoder_speed.json", json_writer(result, indent=1))
    print(where)
    print(table(rows))


def table(rows: Sequence[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(row["network"] for row in rows))
    lines = [f"| batch | tokens | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for batch, tokens in dict.fromkeys((row["batch"], row["tokens"]) for row in rows):
        found = {r["network"]: r for r in rows if (r["batch"], r["tokens"]) == (batch, tokens)}
        cells = [f"{found[name]['ms']:.1f} ± {found[name]['spread']:.1f}" for name in names]
        lines.append(f"| {batch} | {tokens} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, rounds=9, threads=0, device="cpu", out="runs/text_encoders")
    add = parser.add_argument
    lengths = [8, 16, 32, 64, 128, 256, 512, 1024]
    add("--lengths", type=int, nargs="+", default=lengths, help="tokens (default: %(default)s)")
    add("--batches", type=int, nargs="+", default=[1, 32], help="(default: %(default)s)")
    return parser


if __name__ == "__main__":
    main(_parser(), run)
