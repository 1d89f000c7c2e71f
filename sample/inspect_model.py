"""Tell what a model is: a folder, a single file, a LoRA, an embedding, or a name on the hub.

python sample/inspect_model.py model.safetensors
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without installation

from sdcore.app.inspect import main

if __name__ == "__main__":
    sys.exit(main())
