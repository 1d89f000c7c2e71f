"""What every training shares; needs the extra `train`.

settings.py    YAML that holds only what differs, checked;  command.py  the command line of a recipe
objective.py   noise at random times, and the weighted error of what the UNet answers
optimizers.py  AdamW and Muon
peft_layers.py small trainable layers beside a network's, by PEFT, and what they learned
facts.py       what a trained file's header says about its training
report.py      a run as one page;  report_data.py, report_curves.py, report_pictures.py  its parts
state.py       checkpoints that survive anything, exact resume
run.py         the loop around a recipe: learning rate, metrics, checkpoints
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
