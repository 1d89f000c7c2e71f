"""All of it in one call.

text_to_image.py   TextToImage: jobs to pictures;  start.py  where a run begins
result.py          what a painting gives
second_pass.py, larger.py  a second run, larger or with a refiner
image_heatmaps.py  heatmaps of a picture that was not painted
"""
