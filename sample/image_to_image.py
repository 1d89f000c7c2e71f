"""Paint from a picture, or repaint a part of one.

python sample/image_to_image.py fox.png "a red apple" --strength 0.7
python sample/image_to_image.py fox.png "a blue sky" --mask mask.png
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without installation

from sdcore.app.image import main

if __name__ == "__main__":
    sys.exit(main())
