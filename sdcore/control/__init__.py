"""Attention seen, measured and steered, without an attention map.

run_control.py  what a control may do in a run
chain.py        several controls in one run, or one for some of its steps, layers or prompts
made_at_begin.py  a control that needs the tokens as its run has them
heatmaps.py     where each word is read
prompt_edit.py, alignment.py  words changed, picture kept;  reweight.py  words that count more
regions.py      a prompt for each part of the picture
attend_and_excite.py  words that are overlooked
"""
