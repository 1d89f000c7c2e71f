"""Show where, when and in which layers a picture reads each word of its prompt: one HTML page.

python sample/explain.py "a fox to the left of a cat in flat style, light blue background" --seed 3
python sample/explain.py "a fox on grass" --image photo.png
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without installation

from sdcore.app.explain import main

if __name__ == "__main__":
    sys.exit(main())
