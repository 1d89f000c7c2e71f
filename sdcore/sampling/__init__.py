"""From a prompt to latents.

conditioning.py  prompts to what the UNet reads at each step;  sizes.py   SDXL's size conditioning
calls.py         the UNet as a run calls it: each text read once, and what shortcuts keep
fitting.py       which shortcuts a run can take
guidance.py      the guided prediction
begin.py         a control made ready for a run
loop.py          step by step
"""
