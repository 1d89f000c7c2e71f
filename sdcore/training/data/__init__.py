"""What a model is trained on: people's own pictures and captions, read, judged, ordered, cached.

settings.py    what can be said about data
items.py       a picture that is not read yet, and its caption
sources.py     which layout a source has, and its items; one file for each layout:
               folder.py, metadata.py, kohya.py, kohya_toml.py, tables.py, tars.py, hub.py
columns.py     which columns of a table are meant
extras.py      packages that only some layouts need
checked_json.py  JSON of ours with its hash
subset.py      how the pictures of one folder are read
texts.py       captions out of text files, in whatever encoding
content.py     what is wrong with a picture's bytes
scan.py        everything judged before the first step
scan_cache.py  what was judged before
scanned.py     what a scan found, also in lines for people
buckets.py     sizes to train at, and what a picture becomes in one
pictures.py    pixels and masks
captions.py    what the model reads of a caption
order.py       which pictures a batch holds
cache.py       latents and text states on disk
examples.py    a batch, ready for the model
"""
