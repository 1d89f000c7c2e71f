"""Change words of a prompt and keep the picture: before and after, side by side.

python sample/edit_prompt.py "a fox in flat style" --to "a cat in flat style" --seed 3
python sample/edit_prompt.py "a red apple" --reweight "red:0" --images 4
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without installation

from sdcore.app.edit import main

if __name__ == "__main__":
    sys.exit(main())
