"""How much a file may hold: bytes, and values, of which a few bytes can make much work.

Sound files have a tenth of each or less. A file beyond one of these is refused by name, before its
content becomes objects. What one request may ask for is elsewhere: sdcore/job/budget.py.
"""

from __future__ import annotations

MIB = 1 << 20

# Settings files
JSON_BYTES = 16 * MIB
JSON_VALUES = 500_000  # marks that begin or divide values; a CLIP tokenizer.json has 200,000
TOML_BYTES = MIB
KEY_PARTS = 32  # of a key a.b.c; for tomllib the work grows with the square of their number
YAML_BYTES = 64 << 10

# Weights
HEADER_BYTES = 16 * MIB  # that of SDXL's UNet has 0.2 MiB
TENSORS = 20_000  # SDXL in one file has 2,515
GGUF_NOTES = 10_000

LORA_WEIGHT = 100  # how much of a LoRA, either way; nothing is left of the model long before

# Tokenizers
MERGES_BYTES = 4 * MIB  # CLIP's merges.txt has 0.5 MiB
TOKENS = 200_000  # CLIP has 49,408, and as many merges
ADDED_TOKENS = 10_000
TOKEN_LETTERS = 1000

# Pictures
PICTURE_PIXELS = 64_000_000
PICTURE_SIDE = 65_535  # JPEG's; Pillow keeps some bytes for each row, however short
TEXT_LETTERS = 4 * MIB  # of what a picture says about itself
PIXELS_FOR_TEXT = 32 * MIB  # a picture that is read only to look for a text in it
GRAPH_NODES = 5000
PICTURE_SETTINGS = 1000

# Prompts
PROMPTS_BYTES = 16 * MIB
LINE_BYTES = MIB  # of a file with a job a line, which may have any number of them
