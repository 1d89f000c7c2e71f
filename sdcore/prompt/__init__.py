"""How a prompt is read: marks, weights, chunks and schedules, in the dialects of several tools."""

from sdcore.prompt.dialects import DIALECTS as DIALECTS
from sdcore.prompt.dialects import parse_prompt as parse_prompt
from sdcore.prompt.text import LoraTag as LoraTag
