"""What the pages rest on: their pictures, their figures, and the sentences that must be true.

A figure stands in the text between marks that no reader sees, `<!--=name-->12 %<!--/-->`, and is
filled in anew on every run, in both languages. A sentence that new weights could make untrue is
handed over as a claim, and one that does not hold any more is named at the end.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
PICTURES = HERE / "pictures"
NUMBERS = HERE / "numbers.json"
LANGUAGES = ("en", "zh")
MARK = re.compile(r"<!--=(\w+)-->(.*?)<!--/-->")


@dataclass
class Guide:
    """Collects what the pages need; `finish` writes it."""

    figures: dict[str, str] = field(default_factory=dict)
    claims: dict[str, bool] = field(default_factory=dict)

    def picture(self, name: str, image: Image.Image) -> None:
        """Few colours are kept: charts and small pictures lose nothing that can be seen."""
        few = image.convert("RGB").quantize(255, dither=Image.Dither.NONE)
        few.save(PICTURES / name, optimize=True)
        print(f"  {name}: {few.width} x {few.height}")

    def figure(self, name: str, value: str) -> None:
        assert name not in self.figures, name
        self.figures[name] = value

    def claim(self, sentence: str, holds: bool) -> None:
        self.claims[sentence] = bool(holds)

    def finish(self) -> list[str]:
        """Write the figures into the pages; returns the claims that do not hold."""
        measured = {"figures": self.figures, "claims": self.claims}
        NUMBERS.write_text(json.dumps(measured, indent=1, ensure_ascii=False) + "\n", "utf-8")
        for language in LANGUAGES:
            for page in sorted((HERE / language).glob("*.md")):
                text = page.read_text("utf-8")
                page.write_text(MARK.sub(self._filled, text), "utf-8")
        return [sentence for sentence, holds in self.claims.items() if not holds]

    def _filled(self, mark: re.Match[str]) -> str:
        return f"<!--={mark[1]}-->{self.figures[mark[1]]}<!--/-->"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"
