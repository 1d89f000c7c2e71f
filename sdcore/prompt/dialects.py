"""The dialects of prompts by name: how each reads marks, divides long texts and applies weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from torch import Tensor

from sdcore.checks import shown
from sdcore.errors import UsageError
from sdcore.prompt.a1111 import parse as parse_a1111
from sdcore.prompt.chunks import TokenizedText
from sdcore.prompt.comfy import parse as parse_comfy
from sdcore.prompt.compel import parse as parse_compel
from sdcore.prompt.dividing import Rule, after_commas, after_sentences, cut_off, keep_short_groups
from sdcore.prompt.encoder import Encoder
from sdcore.prompt.near_marks import with_near_marks
from sdcore.prompt.text import Clause, Excerpt, Fragment, Parsed, always
from sdcore.prompt.weights import (
    Weighing,
    from_empty,
    masked_down,
    multiplied,
    multiplied_with_mean,
    plain_states,
    weighted_states,
)


def parse_plain(prompt: str, negative: bool = False) -> Parsed:
    """The prompt as it is: no character has a meaning."""
    return Parsed((always((Clause(((Fragment(Excerpt.of_all(prompt)),),)),)),))


@dataclass(frozen=True)
class Dialect:
    """How a tool reads prompts.

    Attributes:
        parse: called with the prompt, and whether it is a negative one.
        divide: which tokens go to which chunk.
        weigh: what weights do; None where there are none.
        skips_in_negative: whether CLIP skip counts for the negative prompt too.
        breaks: whether BREAK begins a new chunk, as the prompts of regions need.
        pads: whether the shorter of prompt and negative prompt is filled up with empty prompts;
            otherwise each is read as long as it is.
        pools_as_typed: whether SDXL's pooled text is that of the prompt with all its marks.
    """

    name: str
    parse: Callable[[str, bool], Parsed]
    divide: Rule
    weigh: Weighing | None
    skips_in_negative: bool = True
    breaks: bool = False
    pads: bool = False
    pools_as_typed: bool = False

    def states(self, texts: Sequence[TokenizedText], encoder: Encoder) -> list[Tensor]:
        """What the UNet reads of all texts of a prompt in the order of time: (T, D) each."""
        if self.weigh is None:
            return plain_states(texts, encoder)
        return weighted_states(texts, encoder, self.weigh)


_PLAIN = with_near_marks(parse_plain, "plain")
_A1111 = with_near_marks(parse_a1111, "a1111")
_COMFY = with_near_marks(parse_comfy, "comfy")
_COMPEL = with_near_marks(parse_compel, "compel")

DIALECTS = {
    dialect.name: dialect
    for dialect in (
        Dialect("plain", _PLAIN, cut_off, None, skips_in_negative=False),
        Dialect("a1111", _A1111, after_commas, multiplied_with_mean, breaks=True),
        Dialect("a1111-nonorm", _A1111, after_commas, multiplied, breaks=True),
        Dialect("comfy", _COMFY, keep_short_groups, from_empty),
        Dialect("compel", _COMPEL, after_sentences, masked_down, pads=True, pools_as_typed=True),
    )
}


# What else people call them.
_ALSO = {
    **dict.fromkeys(("web ui", "webui", "automatic1111", "auto1111", "forge", "sd.next"), "a1111"),
    **dict.fromkeys(("comfyui", "swarmui"), "comfy"),
    **dict.fromkeys(("invokeai", "invoke"), "compel"),
    "diffusers": "plain",
}


def dialect_name(name: str) -> str:
    """Our name of a dialect, in any case, or by its tool. UsageError if there is none."""
    plain = (name if isinstance(name, str) else "").strip().lower().replace("_", "-")
    plain = _ALSO.get(plain.replace("-", " "), plain)
    if plain in DIALECTS:
        return plain
    near = get_close_matches(plain, DIALECTS, n=1)
    raise UsageError(
        f"Unknown dialect {shown(name)}.",
        f"The dialects are: {', '.join(DIALECTS)}.",
        f"Did you mean {near[0]!r}?" if near else "Use one of these names.",
    )


def find_dialect(name: str) -> Dialect:
    """The dialect of a name, see `dialect_name`."""
    return DIALECTS[dialect_name(name)]


def parse_prompt(prompt: str, dialect: str, negative: bool = False) -> Parsed:
    """A prompt as a dialect reads it; every text is legal, but for the marks that it refuses."""
    return find_dialect(dialect).parse(prompt, negative)
