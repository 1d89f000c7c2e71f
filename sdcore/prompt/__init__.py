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
