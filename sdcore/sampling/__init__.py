"""From a prompt to latents.

conditioning.py  prompts to what the UNet is told at each step
guidance.py      the guided prediction
begin.py         a control made ready for a run
loop.py          step by step
"""
