"""Whole models: what kind they are, in folders and single files, strictly and without unpickling.

parts.py        the parts of a model;  kind.py   what kind of model they make
model.py        a whole model, of whatever form;  defaults.py   how it is run when nobody says
loading.py      a model by its name: a folder, a file, the hub
single_file.py, families.py, edm.py, ldm_names.py, clip_tokenizer.py   models in one file
ldm_spellings.py   other names in such files;  filling.py   networks given their weights
part_files.py   a UNet, autoencoder or text encoder from elsewhere
inspection.py   what a file or folder is, from its headers, without loading it
interop.py      our networks in diffusers' pipelines
"""
