"""How a prompt is read: marks, weights, chunks and schedules, in the dialects of several tools.

text        what a dialect makes of a prompt: parts, clauses, passages, fragments
a1111, schedule, comfy, compel          the dialects' grammars
dialects    the dialects by name
chunks      texts of any length for an encoder of 77 positions
weights     what a weight does to the encoder's states
reading     prompts to tokens
encoding    prompts to states
explain     the same as a table
"""

from sdcore.prompt.dialects import DIALECTS as DIALECTS
from sdcore.prompt.dialects import parse_prompt as parse_prompt
from sdcore.prompt.explain import explain_prompt as explain_prompt
from sdcore.prompt.reading import read_tokens as read_tokens
from sdcore.prompt.text import LoraTag as LoraTag
