"""The diffusion around the UNet.

noise.py          the forward process, prediction targets, loss weights
schedulers.py     diffusers' schedulers by the names that people use;  dpm_sde.py   one of our own
sampler_names.py  the names of other tools
steps.py          which times a run visits, and how one step is taken
guidance.py       the settings of guidance
"""
