"""`python -m mmaudio.pipeline`: the whole pipeline, see `mmaudio.pipeline.run`."""

from mmaudio import cli
from mmaudio.pipeline.run import main

cli.run(main)
