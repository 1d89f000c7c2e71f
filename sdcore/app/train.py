"""Teach a model your own pictures: a LoRA, a word, or all of it.

sdcore train data=my_pictures
sdcore train --dry-run data=my_pictures model=sd15.safetensors
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, NoReturn

from sdcore.app import command
from sdcore.errors import UsageError

if TYPE_CHECKING:
    from sdcore.training.finetune_settings import FinetuneSettings

_DESCRIPTION = """\
Teach a model your own pictures. `data` is all that is needed; what is not said is chosen for the
model and the number of pictures, and printed. The same command goes on where a run was stopped.

  a LoRA, beside the model's layers, for a style or a subject:
    sdcore train data=my_pictures
    sdcore train data=my_pictures model=sd15.safetensors data.trigger=mystyle lora.rank=16
  DreamBooth, a subject that keeps its class from being forgotten:
    sdcore train data=my_dog data.trigger=sks data.prior.source=dogs \\
        "data.prior.prompt=a photo of a dog"
  a new word, and nothing else of the model:
    sdcore train method=textual_inversion data=my_toy "inversion.token=<toy>" \\
        inversion.begin_from=toy
  all weights, or the attention to the text alone:
    sdcore train method=full data=my_pictures
    sdcore train method=full full.layers=cross data=my_pictures

Settings are key.path=value, as they stand in the files of configs/train; a file is used with
--config. Several GPUs: accelerate launch -m sdcore.app.train data=my_pictures"""

_EPILOG = """\
often used:
  model=embedded | FOLDER | FILE | OWNER/NAME    run.folder=runs/mine    run.steps=500
  run.batch_size=4  run.accumulate=2  run.learning_rate=1e-4  run.schedule=cosine
  run.optimizer=adamw | adamw_8bit | adafactor | prodigy | schedule_free | muon
  run.precision=no | bf16 | fp16      gradient_checkpointing=true      run.ema_decay=0.999
  lora.kind=lora | dora | rslora | locon | loha | lokr      lora.targets=[cross]
  lora.text_encoder=true    data.captions=file | name | none    data.resolution=512
  data.held_out=2           validation.patience=3               validation.prompts=["a red fox"]
  noise.weighting=min_snr   noise.offset=0.05                   data.masks=alpha"""


class _Parser(command.Parser):
    """A parser that knows that settings have no dashes."""

    def error(self, message: str) -> NoReturn:
        if "rguments: -" in message:
            what = "The command line cannot be read."
            hint = f"Settings have no dashes, as run.steps=500; `{self.prog} --help` shows them."
            error = UsageError(what, f"{message[:1].upper()}{message[1:]}.", hint)
            self.exit(error.exit_code, f"error: {error}\n")
        super().error(message)


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=prog,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("settings", nargs="*", metavar="key.path=value", help="settings that differ")
    add("--config", metavar="FILE", help="a settings file, such as configs/train/style_lora.yaml")
    text = "say what would be trained, on what, and what it would cost; train nothing"
    only = parser.add_mutually_exclusive_group().add_argument
    only("--dry-run", action="store_true", help=text)
    text = "prove on these settings and data that a stopped run goes on to the bit; train nothing"
    only("--verify-resume", action="store_true", help=text)
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    """Run the command; returns the exit code, which is 130 or 143 where a signal stopped it."""
    parse = make_parser(prog).parse_intermixed_args
    stopped: list[int] = []
    text = "stopped at once; the same command goes on from the newest checkpoint"
    code = command.run(lambda options: _work(options, stopped), parse, arguments, stopped=text)
    return stopped[0] if stopped else code


def _work(options: argparse.Namespace, stopped: list[int]) -> None:
    from sdcore.training.finetune import train
    from sdcore.training.prepare import prepare
    from sdcore.training.signals import Interrupted
    from sdcore.training.summary import command_to_paint, summary

    settings = load(options)
    if options.verify_resume:
        from sdcore.training.verify import verify_resume

        command.say(verify_resume(settings))
        return
    ready = prepare(settings, cache=not options.dry_run)
    if ready.is_main:
        command.say(summary(ready))
    if options.dry_run:
        return
    try:
        paths = train(ready)
    except Interrupted as stop:
        stopped.append(128 + stop.signal)
        command.tell(
            f"stopped after step {stop.step}, which is saved in {ready.settings.run.folder}; the "
            "same command goes on"
        )
        return
    for path in paths:
        command.say(path)
    if paths:
        command.say(f"paint with it: {command_to_paint(ready, paths[0])}")


def load(options: argparse.Namespace) -> FinetuneSettings:
    """The settings that a command line names."""
    from sdcore.training.finetune_settings import FinetuneSettings
    from sdcore.training.settings import load_settings

    return load_settings(FinetuneSettings, options.config, options.settings)


if __name__ == "__main__":
    sys.exit(main())
