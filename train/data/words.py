"""The list of the words that a model is taught, which its folder carries as words.json.

    python -m train.data.words --data configs/train/emoji_data.yaml --model sdcore/models/emoji

The names come from the settings; the words around them are found in captions, so that the list
follows whatever wording the captions take.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sdcore.errors import FileError, exit_on_error
from sdcore.known_words import FILE_NAME, KnownWords
from train.data.captions import CHINESE_BACKGROUNDS
from train.data.scenes import PLACES, Scenes
from train.data.settings import DataSettings
from train.settings import load_settings

CAPTIONS = 20_000  # that are looked through for the words around the names


def known_words(scenes: Scenes, count: int = CAPTIONS) -> KnownWords:
    """All words that the captions of these scenes can contain, as far as `count` of them tell."""
    names, counted = _names(scenes.settings)
    captions = [scenes.scene(0, index).caption for index in range(count)]
    known = KnownWords.of(names, counted)
    found = {word for caption in captions for word in known.unknown(caption)}
    other = set(counted)
    # The shortest first: "在" and "左边" are found alone, so "在左边" says nothing new.
    for text in sorted(found, key=lambda text: (len(text), text)):
        other.update(KnownWords.of(names, other).unknown(text))
    for text in sorted(other, key=lambda text: (-len(text), text)):
        if not KnownWords.of(names, other - {text}).unknown(text):
            other.remove(text)
    return KnownWords.of(names, other)


def _names(settings: DataSettings) -> tuple[list[str], list[str]]:
    """What captions are about, in the languages that they are in; and "一只", "一头"."""
    names = [*settings.concepts, *settings.styles, *settings.backgrounds, *PLACES]
    names += [size for size, share in settings.size_shares.items() if share and size != "medium"]
    words = [settings.words[concept] for concept in settings.concepts if concept in settings.words]
    names += [name for word in words for name in word.also]
    if not settings.chinese_share:
        return names, []
    names += [name for word in words for name in word.zh]
    names += [CHINESE_BACKGROUNDS[color] for color in settings.backgrounds]
    return names, [f"一{word.measure}" for word in words]


def save_words(scenes: Scenes, folder: Path) -> None:
    """Write words.json, sorted, beside a model's other files."""
    known = known_words(scenes)
    lists = {"names": sorted(known.names), "other": sorted(known.other)}
    text = json.dumps(lists, ensure_ascii=False, indent=0)
    (folder / FILE_NAME).write_text(text + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", default="configs/train/emoji_data.yaml", help="(default: %(default)s)")
    add("--model", type=Path, required=True, metavar="FOLDER", help="gets words.json")
    arguments = parser.parse_args()
    with exit_on_error():
        if not (arguments.model / "model_index.json").is_file():
            raise FileError(
                f"{arguments.model} is not a model's folder",
                "it holds no model_index.json",
                "name the folder of a trained model",
            )
        save_words(Scenes(load_settings(DataSettings, arguments.data)), arguments.model)
        print(arguments.model / FILE_NAME)


if __name__ == "__main__":
    main()
