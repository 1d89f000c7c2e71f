"""Turn a model into another form; old pickled files into safetensors.

python sample/convert.py old.ckpt new.safetensors      also .pt and .bin, in a closed process
python sample/convert.py embedding.pt new.safetensors  a textual inversion, under its token
python sample/convert.py folder new.safetensors        a diffusers folder to a single file
python sample/convert.py model.safetensors folder      and back
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without installation

from sdcore.app.convert import main

if __name__ == "__main__":
    sys.exit(main())
