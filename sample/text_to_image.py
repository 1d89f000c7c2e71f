"""Paint prompts.

python sample/text_to_image.py "a red apple in flat style on a light blue background"
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without installation

from sdcore.app.paint import main

if __name__ == "__main__":
    sys.exit(main())
