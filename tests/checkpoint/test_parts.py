"""The table of a model's parts: it names what diffusers writes and what sdcore reads."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from sdcore import TextToImage, save_folder
from sdcore.checkpoint.parts import NETWORKS, PARTS, TOKENIZER_OF, wanted_parts


def test_the_classes_and_weights_are_those_of_the_networks():
    for name in NETWORKS:
        part, network = PARTS[name], PARTS[name].load_class()
        own = ("RecurrentTextEncoder",) if name.startswith("text_encoder") else ()
        assert part.classes == (*network.PUBLISHED_CLASSES, *own)
        assert part.contents == network.WEIGHTS_NAME
        for published in own:
            assert PARTS[name].load_class(published).__name__ == published


@pytest.mark.parametrize("fixture", ["sd_folder", "sd2_folder", "sdxl_folder", "refiner_folder"])
def test_a_saved_folder_lists_what_diffusers_lists(request, fixture, tmp_path):
    folder = request.getfixturevalue(fixture)
    model = TextToImage.from_pretrained(folder)
    save_folder(model, tmp_path)
    ours, theirs = (
        json.loads((path / "model_index.json").read_text("utf-8")) for path in (tmp_path, folder)
    )
    for name, part in PARTS.items():
        listed = theirs.get(name, [None, None])
        assert ours.get(name, [None, None]) == listed, name
        assert (model.part(name) is None) == (listed[0] is None)
        assert listed[0] in (None, part.library)
    assert ours["_class_name"] == theirs["_class_name"]
    assert ours.get("force_zeros_for_empty_prompt") == theirs.get("force_zeros_for_empty_prompt")
    assert list(model.networks) == [name for name in NETWORKS if model.part(name) is not None]


def test_half_of_a_second_text_encoder_asks_for_the_other_half():
    first, second = (set(pair) for pair in TOKENIZER_OF.items())
    others = set(PARTS) - first - second

    def wanted(*components: str) -> set[str]:
        return {part.name for part in wanted_parts(components)}

    assert wanted() == wanted("unet") == wanted("tokenizer") == others | first
    assert wanted("text_encoder_2") == wanted("tokenizer_2", "unet") == others | second
    assert wanted("tokenizer", "tokenizer_2") == others | first | second


def test_the_table_loads_no_torch():
    code = "import sys; import sdcore.checkpoint.parts; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
