"""The tables of docs/single_files.md about files, made from the code.

python -m tests.files_table          writes them into the page
python -m tests.files_table --check  says whether the page has them as they are
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from sdcore.adapters import lora_names
from sdcore.adapters.lora_kinds import KINDS
from sdcore.app import convert_worker
from sdcore.checkpoint import families, ldm_spellings
from sdcore.files import header, layout

PAGE = Path(__file__).parents[1] / "docs" / "single_files.md"
BEGIN, END = "<!-- tables: python -m tests.files_table -->", "<!-- end of tables -->"

# What each kind that a file can be is opened by.
OPENED_BY = {
    "a LoRA": "`--lora`, `read_lora`",
    "a ControlNet": "refused",
    "motion modules of AnimateDiff": "refused",
    "an IP-Adapter": "refused",
    "a whole model in LDM layout": "`--model`; `--unet`, `--vae`, `--text-encoder` take a part",
    "a UNet without all that belongs to it": "`--model` with the other parts; `--unet`",
    "an autoencoder alone, in LDM layout": "`--vae`",
    "a UNet alone, without the prefix of a whole model": "`--model` with the other parts; `--unet`",
    "the unet of a diffusers folder": "`--model` with the other parts; `--unet`; its folder",
    "the vae of a diffusers folder": "`--vae`; its folder",
    "the text encoder of a diffusers folder": "`--text-encoder`; its folder",
    "a text encoder in OpenCLIP's layout": "`--text-encoder`",
    "a textual-inversion embedding": "`--embedding`, `read_embedding`",
}


def tables() -> str:
    """All of them, as Markdown."""
    return "\n".join([*_kinds(), "", *_types(), "", *_left_out(), "", *_lora(), "", *_pickles()])


def _rows(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    yield from (
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows
    )


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _kinds() -> Iterator[str]:
    yield from _rows(
        ("a file that holds", "is opened by"),
        ((kind, OPENED_BY.get(kind, "refused")) for kind in families._KINDS),
    )


def _types() -> Iterator[str]:
    real = [name for name in header._REAL_TYPES if name not in header.EIGHT_BITS]
    scales = _quoted(f"*{name}" for name in header.SCALES)
    beside = _quoted(f"*{name}" for name in header._BESIDE_EIGHT_BITS)
    rows = [
        (_quoted(real), "read"),
        (_quoted(header.EIGHT_BITS), f"widened exactly, times {scales}; {beside} are left out"),
        (
            _quoted(header._INTEGER_TYPES),
            "no weights: left out where they are known to be needless",
        ),
        (
            "GGUF: " + _quoted(["Q8_0", "Q6_K", "Q5_K", "Q4_K", "..."]),
            "widened by the package `gguf`",
        ),
        (_quoted(header._OTHER_TYPES), "refused, said to be sound"),
    ]
    yield from _rows(("type of its numbers", "what is done"), rows)


def _left_out() -> Iterator[str]:
    quiet = sorted(ldm_spellings.LEFTOVERS)
    quiet += [f"{name}*" for name in ldm_spellings.LEFTOVER_PREFIXES]
    quiet += [f"*{name}" for name in ldm_spellings.LEFTOVER_SUFFIXES]
    told = sorted(ldm_spellings.TOLD) + [f"{name}*" for name in ldm_spellings.TOLD_PREFIXES]
    text = [f"{name}*" for name in ldm_spellings.TOLD_OF_TEXT]
    rows = [
        (_quoted(quiet), "left out"),
        (_quoted(sorted(ldm_spellings.MARKERS)), "say what the UNet predicts"),
        (_quoted(told), "left out, with one line"),
        (f"of a text encoder: {_quoted([*text, *ldm_spellings._PROJECTIONS])}", "the same"),
        ("any other that no network has", "an error; `--allow-extra` leaves it out, with one line"),
        ("one that is missing or of another shape", "an error"),
    ]
    yield from _rows(("a tensor of a checkpoint", "what is done"), rows)


def _lora() -> Iterator[str]:
    known = set(lora_names.ENDINGS.values())
    used: set[str] = set()
    rows: list[tuple[str, str]] = []
    words = {  # tensor of ours -> those of files that become it, see lora_words.py
        "rotation": {"oft_R", "boft_R"},
        "stretch": {"boft_s"},
        "ia3_w": {"on_input"},
    }
    for kind in KINDS:
        parts = {part for form in kind.FORMS for part in form}
        parts = {word for part in parts for word in words.get(part, {part})} & known
        rows.append((_quoted(_endings(parts)), (kind.__doc__ or "").split(".")[0].split(":")[0]))
        used |= parts
    rows.append((_quoted(_endings(known - used)), "beside any of them"))
    rows.append((f"`{lora_names.BUNDLED}*`", "learned words, taught to the model"))
    refused: dict[str, list[str]] = {}
    for ending, kind in lora_names.REFUSED.items():
        refused.setdefault(kind, []).append(ending)
    rows += [(_quoted(endings), f"refused: {kind}") for kind, endings in refused.items()]
    rows.append(("any other", "an error; `--allow-partial` leaves it out"))
    yield from _rows(("a tensor of a LoRA ends in", "what it is"), rows)


def _endings(parts: set[str]) -> list[str]:
    return sorted(ending for ending, part in lora_names.ENDINGS.items() if part in parts)


def _pickles() -> Iterator[str]:
    rows = [
        (_quoted(layout.PICKLE_SUFFIXES), "not opened; `sdcore convert` goes by what they hold"),
        (_quoted(f"{name}*" for name in convert_worker._HARMLESS), "carry no tensors: left out"),
        (f"`{convert_worker._PARAMETERS}Dict`", "its tensors are taken"),
        ("any other class", "refused: nothing of a file is run"),
    ]
    yield from _rows(("a pickle, or a class in one", "what is done"), rows)


def page_with_tables(text: str) -> str:
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


if __name__ == "__main__":
    old = PAGE.read_text("utf-8")
    new = page_with_tables(old)
    if "--check" in sys.argv:
        sys.exit("the page has other tables" if old != new else 0)
    PAGE.write_text(new, "utf-8")
