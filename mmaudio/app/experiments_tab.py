"""The tab Experiments: their verdicts and reports, and adapters to take away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmaudio.app.config import AppConfig
from mmaudio.app.experiment_list import (
    DTYPES,
    export_experiment,
    find_experiment,
    find_experiments,
    merge_experiment,
)
from mmaudio.app.handlers import GPU_QUEUE, HIDDEN, explain_errors, list_field, text_field
from mmaudio.app.markup import show_experiment

COLUMNS = ("Experiment", "Model", "Verdict")


def build_experiments_tab(gr: Any, config: AppConfig) -> tuple[Callable[[], list[Any]], list[Any]]:
    """Build the tab; a function that lists the experiments anew, and the components that it fills."""
    table = gr.Dataframe(headers=list(COLUMNS), datatype="str", interactive=False, wrap=True, elem_id="experiments")
    choice = list_field(gr, [], label="Experiment", elem_id="experiment")
    details = gr.HTML(elem_id="experiment-details")
    with gr.Row():
        strength = gr.Textbox("1", label="Merge at strength")
        dtype = gr.Dropdown(list(DTYPES), value="fp16", label="in")
    with gr.Row():
        export = gr.Button("The adapter as one file", elem_id="export")
        merge = gr.Button("Merge into the base model", elem_id="merge")
    note = gr.Textbox(label="State", interactive=False, elem_id="experiment-state", max_lines=4)
    file = gr.File(label="File", interactive=False, visible=False, elem_id="experiment-file")

    def show(name: str) -> str:
        """The chosen experiment's verdict and files, as HTML."""
        return show_experiment(find_experiment(config.folders, name)) if name else ""

    def save_adapter(name: str) -> tuple[str, Any]:
        """What is said of the adapter's single file, and the file for the browser."""
        path = export_experiment(config.folders, text_field(name))
        return f"{path.name}: for ComfyUI's models/loras, and for --adapter", gr.update(value=str(path), visible=True)

    def merge_adapter(name: str, amount: str, numbers: str) -> tuple[str, Any]:
        """What is said of the merged checkpoint, and the file for the browser."""
        path, comfyui = merge_experiment(config, text_field(name), text_field(amount), text_field(numbers))
        where = path.relative_to(config.folders.output).as_posix()
        return f"{where}\n{comfyui}", gr.update(value=str(path), visible=True)

    choice.change(explain_errors(show), choice, details, **HIDDEN)
    export.click(explain_errors(save_adapter), choice, [note, file], **HIDDEN)
    merge.click(explain_errors(merge_adapter), [choice, strength, dtype], [note, file], **GPU_QUEUE, **HIDDEN)

    def refresh() -> list[Any]:
        """The table of experiments and the choice of one, read anew."""
        experiments = find_experiments(config.folders)
        rows = [[item.name, item.model(), item.verdict().get("Verdict", "not evaluated yet")] for item in experiments]
        return [rows, gr.update(choices=[item.name for item in experiments])]

    return refresh, [table, choice]
