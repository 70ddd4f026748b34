"""`python -m mmaudio.pipeline`: the whole pipeline, see `mmaudio.pipeline.run`."""

from mmaudio import cli
from mmaudio.pipeline.run import main

if __name__ == "__main__":
    cli.run(main)
