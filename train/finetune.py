"""Teach a model your own pictures.

python train/finetune.py data=my_pictures
accelerate launch train/finetune.py data=my_pictures
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without installation

from sdcore.app.train import main

if __name__ == "__main__":
    sys.exit(main())
