"""The page on samplers has the tables that the code makes."""

from __future__ import annotations

from bench.sampler_tables import COMFY, PAGE, WEB_UI, names_table, with_tables
from sdcore.diffusion.presets import PRESETS


def test_the_page_has_the_tables_of_the_code() -> None:
    text = PAGE.read_text("utf-8")
    assert with_tables(text) == text, "run python -m bench.sampler_tables"


def test_the_page_has_the_presets() -> None:
    text = PAGE.read_text("utf-8")
    for name, preset in PRESETS.items():
        assert f"| `{name}` | {preset.steps} | none" in text
        assert f"| `{preset.scheduler}` |" in text


def test_what_is_not_here_has_a_reason() -> None:
    rows = [line.split(" | ") for line in names_table().splitlines()[2:]]
    lacking = {row[1].strip("`"): row[3] for row in rows if row[2] == "not here"}
    assert {"DPM fast", "DPM adaptive", "Restart"} == {n for n in lacking if n in WEB_UI}
    assert all(len(reason) > 20 for reason in lacking.values())
    assert sum(name in lacking for name in COMFY) < len(COMFY) / 2
