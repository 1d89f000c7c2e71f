"""The UNet: noisy latents, time and text to a prediction.

config.py               sizes, from a diffusers config.json
unet.py                 the whole;  blocks.py  down, middle and up
spatial_transformer.py  image tokens that look at one another and read the text
"""
