"""A corpus of bad inputs, made by number: a case follows from its reader and a number alone.

case.py      a reader, and how one case of it is judged
weights.py   weights, adapters, single files, GGUF, old checkpoints
settings.py  settings of models and tokenizers, of training, of data; captions; checkpoints of runs
pictures.py  pictures, and what they say about how they were made
requests.py  prompts, jobs and command lines
run.py       cases in processes that may die, and the table of what came of them
fuzz.py      a search for inputs that are slower, larger or new in what they reach
"""

from tests.reliability.corpus.case import Reader
from tests.reliability.corpus.pictures import READERS as PICTURES
from tests.reliability.corpus.requests import READERS as REQUESTS
from tests.reliability.corpus.settings import READERS as SETTINGS
from tests.reliability.corpus.weights import READERS as WEIGHTS

READERS: dict[str, Reader] = {
    reader.name: reader for reader in (*WEIGHTS, *SETTINGS, *PICTURES, *REQUESTS)
}
