"""Pictures: between pixels and latents, in and out.

autoencoder.py  pixels to latents and back
pictures.py     pictures and masks from outside;  canvas.py  the part of one that is painted
overlay.py, grid.py  pictures for people;  data_url.py  and as part of a page
"""
