"""The notebook: every cell runs, from videos to an adapter that is used, in a kernel of its own."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from helpers import ROOT
from nbclient import NotebookClient

from mmaudio.synthetic.demo import plan_demo_videos, write_demo_video

NOTEBOOK = ROOT / "examples" / "colab.ipynb"
SHORT = "exp_id=x max_steps=4 eval_every=2 save_every=2 warmup_steps=1 batch_size=4 lora.rank=4"


def read_notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def outputs(notebook):
    """All that the cells printed and showed, as text."""
    texts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            texts.append(output.get("text", "") or "".join(map(str, output.get("data", {}).values())))
    return "\n".join(texts)


def test_it_is_stored_without_outputs_and_its_settings_can_be_replaced():
    notebook = read_notebook()
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert [cell.metadata.get("tags") for cell in code].count(["parameters"]) == 1


@pytest.mark.slow
def test_every_cell_runs_from_videos_to_an_adapter_that_is_used(tmp_path, monkeypatch, shared_base_outputs):
    for video in plan_demo_videos(tmp_path / "my_videos", 3, 9.0, 0):
        write_demo_video(video)
    notebook = read_notebook()
    place = next(row for row, cell in enumerate(notebook.cells) if cell.metadata.get("tags") == ["parameters"])
    values = f'MODEL = "tiny_16k"\nSETTINGS = "{SHORT}"'
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(values))
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    patient = {"timeout": None, "startup_timeout": 600, "iopub_timeout": 60}
    NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}, **patient).execute()
    printed = outputs(notebook)
    assert "cannot tell" in printed and "report/index.html" in printed and printed.count("<video") == 2
    assert (tmp_path / "result" / "output" / "x" / "lora_checkpoints" / "x_lora.safetensors").is_file()
