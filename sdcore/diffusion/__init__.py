"""The diffusion around the UNet.

noise.py          the forward process, prediction targets, loss weights
levels.py         schedules: the noise levels that a run visits, by published formulas
methods.py        the table of methods, with their names in every tool
sampler_names.py  names as people type them, and as pictures of other tools have them
scheduler_config.py  a model's scheduler_config.json: strict reading, diffusers' repairs
schedulers.py     a sampler's name and a model's settings, joined
given_levels.py   diffusers' classes over the levels of a schedule
solvers.py        methods that diffusers lacks;  ddim.py   DDIM over any times, and with CFG++
steps.py          which times a run visits, and how one step is taken
presets.py        how models of few steps are run
guidance.py       the settings of guidance;  shortcuts.py  of runs with fewer operations
"""
