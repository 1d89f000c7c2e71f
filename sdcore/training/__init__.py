"""Training: the fine-tuning of people's own pictures, and what every training shares.

Needs the extra `train`.

finetune.py     the loop, for every method;  finetune_settings.py  all that can be said
prepare.py      from settings to what the loop needs, prepared.py;  choices.py  what is left open
summary.py      what is said of it before the first step
data/           people's pictures
methods.py      what is trained: lora, full, textual_inversion;  export.py  what is written
network.py      a model's networks as one module;  peft_layers.py  layers of LoRAs, by PEFT
objective.py    noise at random times, and the weighted error of what the UNet answers
inpainting.py   masks of models that fill holes;  prior.py  class pictures of DreamBooth
validation.py   pictures, heatmaps, drift and the held-out loss of a run
verify.py       a proof of exact resume;  estimate.py  what a step costs
run.py          a run: place, updates, metrics, checkpoints, resume;  run_settings.py  its settings
folder.py       whether a run may go on in its folder;  signals.py  Ctrl-C and SIGTERM
fingerprint.py  what tells models and data from others
state.py        checkpoints that survive anything
processes.py    those of accelerate;  sharding.py  a UNet divided over them
optimizers.py   AdamW and its relatives, and Muon
facts.py        names in a trained file's header;  header.py  what they say of a fine-tuning
report.py       a run as one page, of report_data.py, report_curves.py and report_pictures.py
settings.py     YAML that holds only what differs;  command.py  the command line of a recipe
"""

from importlib.util import find_spec

from sdcore.errors import UsageError

_missing = [name for name in ("accelerate", "pydantic", "yaml") if find_spec(name) is None]
if _missing:
    raise UsageError(
        'Training needs the extra "train".',
        f"{', '.join(_missing)} cannot be imported.",
        'Install it: pip install "sdcore[train]".',
    )
