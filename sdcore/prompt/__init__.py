"""How a prompt is read: marks, weights, chunks and schedules, in the dialects of several tools.

    prompt ─parse─► Parsed ─tokenize─► TokenizedPrompt ─encode─► EncodedPrompt
             text             ids, weights               states

dialects.py  the dialects by name: parse, divide, weigh
a1111.py, schedule.py, comfy.py, compel.py   their grammars
text.py      Parsed: the parts of an AND, their texts in time, clauses, passages, fragments
encoding.py  tokenize and encode, TokenizedPrompt and EncodedPrompt: read this first
chunks.py    ids and weights of a text;  dividing.py   where each tool divides a long one
encoder.py   one text encoder: chunks to states;  weights.py   what a weight does to them
tokens.py    the tokens alone, for controls;  explain.py   the same as a table
other_dialects.py   what another dialect would make of a prompt;  near_marks.py   what nearly is one
"""
