"""What a picture says about how it was made.

png.py             in and out of files;  texts.py   what a file of any program holds
parameters.py      the web UI's text of our record, and the text taken apart
recipe.py          what any tool's text asks for;  named_settings.py   one made of settings by name
web_ui.py, invoke.py, other_tools.py   read from theirs
comfy.py           from ComfyUI's graph: comfy_graph.py, comfy_sampling.py, comfy_loras.py;
                   comfy_workflow.py: one as its page draws it
"""
