"""Block weights: how much of a LoRA is used in each block of the UNet, and in the text encoders.

    lbw=1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0        lbw=MIDD

The numbers and names of the web UI's extension sd-webui-lora-block-weight: as many numbers as one
of `LAYOUTS` has blocks. BASE is the text encoders. A block that the layout leaves out is not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

from sdcore.adapters.lora_names import Place, ldm_layers
from sdcore.checkpoint.model import Model
from sdcore.checks import as_finite
from sdcore.errors import UsageError
from sdcore.files.limits import LORA_WEIGHT


def _blocks(ins: str, outs: range) -> tuple[str, ...]:
    return ("BASE", *(f"IN{n:0>2}" for n in ins.split()), "MID", *(f"OUT{n:02}" for n in outs))


LAYOUTS = {
    len(blocks): blocks
    for blocks in (
        _blocks("1 2 4 5 7 8", range(3, 12)),  # SD 1.x, 2.x: the blocks with attention
        _blocks("0 1 2 3 4 5 6 7 8 9 10 11", range(12)),
        _blocks("4 5 7 8", range(6)),  # SDXL
        _blocks("0 1 2 3 4 5 6 7 8", range(9)),
    )
}
# Of 17 blocks, as the extension comes.
PRESETS = {
    "NONE": "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "ALL": "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1",
    "INS": "1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "IND": "1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "INALL": "1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "MIDD": "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0",
    "OUTD": "1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0",
    "OUTS": "1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1",
    "OUTALL": "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1",
    "ALL0.5": ",".join(["0.5"] * 17),
}


def read_blocks(text: str) -> dict[str, float]:
    """Block -> how much of a LoRA is used in it; empty for "", which is all of it everywhere.

    Raises:
        UsageError: no numbers, of another count, or a name that there is not.
    """
    if not text:
        return {}
    words = PRESETS.get(text, text).split(",")
    numbers = [as_finite(_number(word), -LORA_WEIGHT, LORA_WEIGHT) for word in words]
    if None in numbers or len(numbers) not in LAYOUTS:
        near = get_close_matches(text.upper(), PRESETS, n=1)
        raise UsageError(
            f"The block weights {text!r:.80} cannot be used.",
            f"They are {', '.join(map(str, LAYOUTS))} numbers, or one of: {', '.join(PRESETS)}.",
            f"Did you mean {near[0]!r}?" if near else "Give as many numbers as there are blocks.",
        )
    blocks = LAYOUTS[len(numbers)]
    return {
        block: number for block, number in zip(blocks, numbers, strict=True) if number is not None
    }


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def factors(text: str, pipe: Model) -> Mapping[Place, float]:
    """For each layer of the UNet in a block how much is used; other layers of it are not in it.

    Raises:
        UsageError: as `read_blocks`.
    """
    weights = read_blocks(text)
    if not weights:
        return {}
    found: dict[Place, float] = {}
    for place, name in ldm_layers(pipe).items():
        block = _block(name)
        if block is not None:
            found[place] = weights.get(block, 0.0)
    return found


def base_factor(text: str) -> float:
    """How much is used in the text encoders."""
    return read_blocks(text).get("BASE", 1.0)


def _block(name: str) -> str | None:
    """The block of a layer by its name in single files; None for those in none."""
    kind, _, rest = name.partition(".")
    if kind == "middle_block":
        return "MID"
    words = {"input_blocks": "IN", "output_blocks": "OUT"}
    return f"{words[kind]}{int(rest.split('.')[0]):02}" if kind in words else None
