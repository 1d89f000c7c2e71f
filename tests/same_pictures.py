"""Record what a source tree paints, and check that another one paints the same to the bit.

    python tests/same_pictures.py record --tree . --out runs/pictures.json
    python tests/same_pictures.py compare --tree . --with runs/pictures.json --only lora

The program is the folder of the same name beside this file.
"""

from __future__ import annotations

import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).with_suffix("")), run_name="__main__")
