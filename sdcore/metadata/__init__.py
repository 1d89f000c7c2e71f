"""What a picture says about how it was made.

image_settings.py  our record, exact as JSON;  parameters.py  the web UI's text of it
png.py             in and out of files
recipe.py          what any program's text asks for;  web_ui.py, comfy.py  read from theirs
"""
