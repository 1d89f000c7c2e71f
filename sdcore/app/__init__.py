"""Commands, and what they share with a page or a server.

cli.py           the command `sdcore`;  command.py   how every command ends: errors, exit codes
other_flags.py   flags as other tools have them
flags.py         flags, and the model, adapters and jobs that they stand for
model_choice.py  which model, and where it runs;  adapters.py   LoRAs and learned words by name
model_folders.py the folders of other programs, and the names of what lies there
session.py       a loaded model that paints jobs;  output.py   the files that are written
paint.py, image.py, edit.py, inspect.py, train.py    commands
batch.py         a file of jobs, painted whole or in shards;  job_lines.py  what its lines say
batch_report.py  what became of each of them
from_picture.py  --from: a job from what a picture says
browser.py       a page shown to whoever sits before it
unknown_words.py a warning for words that the model was never taught
convert.py, convert_worker.py              old checkpoints, read in a closed process
explain.py, explain_record.py, explain_page.py   the page that shows where each word is read
serve/           the server
"""
