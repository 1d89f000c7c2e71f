"""How a prompt is read: marks, weights, chunks and schedules, in the dialects of several tools.

    prompt ─parse─► Parsed ─tokenize─► TokenizedPrompt ─encode─► EncodedPrompt
             text             ids, weights               states

dialects    the dialects by name: parse, divide, weigh;  a1111, schedule, comfy, compel   grammars
text        Parsed: the parts of an AND, their texts in time, clauses, passages, fragments
encoding    tokenize and encode, TokenizedPrompt and EncodedPrompt: read this first
chunks      ids and weights of a text;  dividing   where each tool divides a long one
encoder     one text encoder: chunks to states;  weights   what a weight does to them
tokens      the tokens alone, for controls;  explain   the same as a table
other_dialects   what another dialect would make of a prompt
"""
