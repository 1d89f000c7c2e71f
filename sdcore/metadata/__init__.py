"""What a picture says about how it was made.

png.py         in and out of files;  parameters.py   the web UI's text of our record
recipe.py      what any tool's text asks for;  web_ui.py, comfy.py   read from theirs
"""
