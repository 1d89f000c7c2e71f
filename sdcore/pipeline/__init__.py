"""All of it in one call.

text_to_image.py  TextToImage;  request.py, source.py, start.py  its arguments and where it begins
second_pass.py    a second run, larger or with a refiner
image_heatmaps.py heatmaps of a picture that was not painted
"""
