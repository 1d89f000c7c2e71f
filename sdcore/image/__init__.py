"""Pictures: between pixels and latents, in and out.

autoencoder.py  pixels to latents and back;  autoencoder_config.py, autoencoder_layers.py  its
    settings and layers;  tiles.py  a large picture piece by piece
pictures.py     pictures and masks from outside;  canvas.py  the part of one that is painted
overlay.py, grid.py, letters.py  pictures for people;  data_url.py  and as part of a page
"""
