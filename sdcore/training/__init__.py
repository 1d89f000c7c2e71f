"""Training: the fine-tuning of people's own pictures, and what every training shares.

Needs the extra `train`.

finetune.py     the loop, for every method;  finetune_settings.py  all that can be said
prepare.py      from settings to what the loop needs;  choices.py  what is left open
data/           people's pictures
methods.py      what is trained and what is written: lora, full, textual_inversion
network.py      a model's networks as one module;  peft_layers.py  layers of LoRAs, by PEFT
objective.py    noise at random times, and the weighted error of what the UNet answers
inpainting.py   masks of models that fill holes;  prior.py  class pictures of DreamBooth
validation.py   pictures, heatmaps, drift and the held-out loss of a run
verify.py       a proof of exact resume;  estimate.py  what a step costs
run.py          a run: place, updates, metrics, checkpoints, resume;  run_settings.py  its settings
state.py        checkpoints that survive anything;  processes.py  those of accelerate
optimizers.py   AdamW and its relatives, and Muon
facts.py        what a trained file's header says about its training
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
