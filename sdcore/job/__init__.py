"""A job: all that one picture depends on, frozen, checked, and exact as JSON.

job.py       Job, and several of them for one call;  sources.py  what a picture begins from
other_names.py  arguments as diffusers names them
budget.py    how much one request may ask for
adapters.py  LoRAs, learned words and a second pass, as a job names them
record.py    a job and the facts of its run: what a picture says about itself
"""
