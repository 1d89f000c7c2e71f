"""The list of the words that a model is taught, which its folder carries as words.json.

    python -m train.emoji.data.words
        --data configs/train/emoji_data.yaml --model sdcore/models/emoji

The names come from the settings; the English words around them are found in captions, so that the
list follows whatever wording the captions take.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Set
from pathlib import Path

from sdcore.errors import FileError, exit_on_error
from sdcore.files.atomic import replace_file, text_writer
from sdcore.text.known_words import FILE_NAME, KnownWords
from sdcore.training.settings import load_settings
from train.emoji.data import own_words
from train.emoji.data.captions import CHINESE_BACKGROUNDS, chinese_words, plural
from train.emoji.data.layout import PLACES
from train.emoji.data.scenes import Scenes
from train.emoji.data.settings import DataSettings

CAPTIONS = 20_000  # that are looked through for the words around the names


def known_words(scenes: Scenes, count: int) -> KnownWords:
    """All words that the captions of these scenes can contain, as far as `count` of them tell."""
    names, other = _told(scenes.settings)
    if scenes.own_words:
        other |= {*own_words.english_words(), *own_words.chinese_words()} - names
    known = KnownWords.of(names, other)
    captions = (scenes.scene(0, index).caption for index in range(count))
    found = {word for caption in captions for word in known.unknown(caption)}
    return KnownWords.of(names, found.union(other))


def _told(settings: DataSettings) -> tuple[set[str], set[str]]:
    """What captions are about, in the languages that they are in, and the other Chinese words."""
    words = {name: settings.words[name] for name in settings.concepts if name in settings.words}
    styles = settings.chinese_styles().values()
    names = {*settings.styles, *settings.backgrounds, *PLACES}
    names |= {size for size, share in settings.size_shares.items() if share and size != "medium"}
    called = {*settings.concepts, *(name for entry in words.values() for name in entry.also)}
    names |= called
    if settings.plural_share:
        names |= {plural(name, settings.plurals) for name in called}
    if not settings.chinese_share:
        return names, set()
    names |= {name for entry in words.values() for name in entry.zh}
    names |= set(styles)
    names |= {CHINESE_BACKGROUNDS[color] for color in settings.backgrounds}
    other = {word for word in chinese_words(words, styles) if word.isalnum()}
    return names, other - names


def save_words(scenes: Scenes, folder: Path, untaught: Set[str] = frozenset()) -> None:
    """Write words.json, sorted, beside a model's other files.

    Args:
        untaught: words of the captions that taught nothing, which are left out.
    """
    known = known_words(scenes, CAPTIONS)
    lists = {"names": sorted(known.names), "other": sorted(known.other - untaught)}
    text = json.dumps(lists, ensure_ascii=False, indent=0)
    replace_file(folder / FILE_NAME, text_writer(text + "\n"))


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
