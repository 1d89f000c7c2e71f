"""Files in and out: judged by content, read without trust, written whole or not at all.

opening.py    the one way in which files are opened;  limits.py   how much they may hold
jsonfile.py   settings files;  tomlfile.py   those of users
header.py     safetensors headers;  gguf_file.py   GGUF files;  content.py   what others are
weights.py    the tensors in both
hashes.py     of files and of weights
atomic.py     the one writer: a draft, synced to disk, that then gets its name;  locks.py
layout.py     the names of weight files, variants and shards
preflight.py  which files a model needs, and which are missing
folder.py     a folder on disk or a hub name;  hub.py   what is fetched, from where
html_page.py  pages in one file
component.py  one network from its folder;  saving.py   and back
"""
