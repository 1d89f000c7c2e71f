"""Paint a file of jobs with Ray: python batch_on_ray.py prompts.txt --output out --steps 20

It takes the flags of `sdcore batch` but --shard, and goes on where that stopped, as that does here.
"""

import os
import sys

import ray

from sdcore import SdcoreError
from sdcore.app.batch import Batch, make_parser
from sdcore.app.job_lines import read_lines

ACTORS, SHARDS = 2, 16  # models in memory; parts of the file, several for each


class Painter:
    """A process in the cluster that keeps its model in memory."""

    def __init__(self, options):
        self.batch = Batch(options)

    def __call__(self, row):
        try:
            self.batch.paint((row["shard"], row["of"]))
        except SdcoreError as error:
            return {"failed": str(error)}
        return {"failed": ""}


os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray reports home
options = make_parser().parse_args()
count = max(1, min(SHARDS, sum(1 for _ in read_lines(options.jobs))))
shards = [{"shard": number, "of": count} for number in range(1, count + 1)]
actors = {"compute": ray.data.ActorPoolStrategy(size=ACTORS), "num_cpus": 1}  # "num_gpus": 1
rows = ray.data.from_items(shards, override_num_blocks=count).map(
    Painter, fn_constructor_args=[options], **actors
)
sys.exit("\n".join(row["failed"] for row in rows.iter_rows() if row["failed"]) or None)
