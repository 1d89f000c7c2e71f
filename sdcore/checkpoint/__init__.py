"""Whole models: what kind they are, in folders and single files, strictly and without unpickling.

parts.py        the one table of a model's parts;  kind.py  what kind of model they make
model.py        a whole model, of whatever form;  defaults.py  how it is run when nobody says
single_file.py, families.py, ldm_names.py, clip_tokenizer.py   models in one file
inspection.py   what a file or folder is, told without loading it
interop.py      our networks in diffusers' pipelines
"""
