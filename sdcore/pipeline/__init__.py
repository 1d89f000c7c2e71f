"""All of it in one call.

text_to_image.py   TextToImage: from jobs to pictures;  result.py   what a painting gives
start.py           where a run begins: the first step's latents;  memory.py   what a run needs
second_pass.py, larger.py   a second run, larger or with a refiner
image_heatmaps.py  heatmaps of a picture that was not painted here
regional.py        the regions of jobs, as the control of their run
trace.py           heatmaps, edits and regions on a diffusers pipeline that somebody has;
                   traced_parts.py, traced_run.py, traced_layer.py   what it follows there
"""
