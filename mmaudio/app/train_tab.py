"""The tab Train: a folder, a look at its clips, captions, the plan, and the training with its progress."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from mmaudio.app.caption_files import write_captions
from mmaudio.app.config import AppConfig
from mmaudio.app.detached_job import RUNNING, STOPPING, DetachedJob
from mmaudio.app.folders import check_name, list_video_folders
from mmaudio.app.handlers import HIDDEN, decimal, explain_errors, list_field, optional_number, text_field, whole_number
from mmaudio.app.progress_view import list_jobs, show_progress
from mmaudio.app.train_request import FolderLook, TrainRequest, describe_plan, look_at_folder
from mmaudio.app.video_upload import add_upload
from mmaudio.errors import ConfigError
from mmaudio.model.spec import MODELS

REFRESH_SECONDS = 2.0
LOOK_QUEUE: dict[str, Any] = {"concurrency_id": "look", "concurrency_limit": 1}
"""Of the events that read a whole folder, start a training or stop it: one after another."""
LEFT_OUT_COLUMNS = ("Video", "From", "To", "Why it is left out")
CAPTION_COLUMNS = ("Video", "Split", "Clips", "Caption")
MAX_FILES = 50
"""Files of one upload."""


def build_request(fields: dict[str, Any]) -> TrainRequest:
    """The request of the fields; ConfigError for what a browser may not ask."""
    return TrainRequest(
        text_field(fields["videos"]),
        check_name(text_field(fields["name"])),
        text_field(fields["model"]),
        whole_number(fields["steps"], "steps"),
        whole_number(fields["rank"], "rank"),
        decimal(fields["learning_rate"], "learning rate"),
        text_field(fields["prompt"]).strip(),
        bool(fields["recursive"]),
        bool(fields["keep_all"]),
        decimal(fields["seconds"], "seconds of a clip"),
        decimal(fields["val_ratio"], "share for validation"),
        decimal(fields["test_ratio"], "share for the test"),
    )


def find_job(config: AppConfig, name: object) -> DetachedJob:
    """The job of a name; ConfigError where there is none."""
    job = DetachedJob(config.folders.output / check_name(text_field(name)))
    if not job.exists or job.root.resolve().parent != config.folders.output:
        raise ConfigError(f"{job.root.name}: no training of this page; choose one from the list")
    return job


def build_fields(gr: Any) -> dict[str, Any]:
    """The fields, by the names that `build_request` reads."""
    fields: dict[str, Any] = {}
    with gr.Row():
        fields["videos"] = list_field(gr, [], label="Folder of videos", elem_id="folder")
        fields["name"] = gr.Textbox(label="Name of the experiment", elem_id="name", max_lines=1)
        fields["model"] = gr.Dropdown(list(MODELS), value="small_16k", label="Base model", elem_id="model")
    with gr.Accordion("Settings (empty: as the pipeline chooses)", open=False, elem_id="settings"):
        with gr.Row():
            fields["steps"] = optional_number(gr, "Steps", elem_id="train-steps")
            fields["rank"] = optional_number(gr, "Rank")
            fields["learning_rate"] = optional_number(gr, "Learning rate")
            fields["prompt"] = gr.Textbox(label="Caption of videos without one", max_lines=1)
        with gr.Row():
            fields["seconds"] = optional_number(gr, "Seconds of a clip (8)", elem_id="clip-seconds")
            fields["val_ratio"] = optional_number(gr, "Share for validation (0.1)")
            fields["test_ratio"] = optional_number(gr, "Share for the test (0.2)", elem_id="test-ratio")
            fields["recursive"] = gr.Checkbox(False, label="Sub-folders, too")
            fields["keep_all"] = gr.Checkbox(False, label="Keep clips that break a rule")
    return fields


def build_upload(gr: Any, config: AppConfig, folder: Any) -> None:
    """Build the part that adds videos to a folder."""
    with gr.Accordion("Add videos to a folder", open=False):
        files = gr.File(label="Videos", file_count="multiple", file_types=["video"], elem_id="new-videos", height=140)
        name = gr.Textbox(label="Into the folder; a new one where there is none of the name", max_lines=1)
        button, note = gr.Button("Add"), gr.Textbox(label="State", interactive=False)

    def add_videos(paths: list[str] | None, text: str) -> tuple[str, None, Any]:
        """Add uploaded files to a folder; what is said of it, no files, and the choice of the folder."""
        if not paths or len(paths) > MAX_FILES:
            raise ConfigError(f"{len(paths or [])} files: 1 to {MAX_FILES} at once")
        target = config.folders.videos / check_name(text_field(text))
        if not target.resolve().is_relative_to(config.folders.videos):
            raise ConfigError(f"{target.name}: leads out of {config.folders.videos}; choose another name")
        added = [add_upload(config.folders, str(path), target).name for path in paths]
        choices = list_video_folders(config.folders.videos)
        return f"added to {target.name}: {', '.join(added)}", None, gr.update(choices=choices, value=target.name)

    button.click(explain_errors(add_videos), [files, name], [note, files, folder], **LOOK_QUEUE, **HIDDEN)


def show_look(look: FolderLook) -> tuple[str, list[list[Any]], list[list[Any]]]:
    """What is shown of a look at a folder: lines, what is left out, and captions."""
    rows = [[row.video, _time(row.start), _time(row.end), row.reason] for row in look.left_out]
    return "\n".join(look.lines), rows, [list(row) for row in look.captions()]


def _time(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:g} s"


def save_captions(config: AppConfig, rows: list[list[Any]], folder: str, prompt: str) -> str:
    """Write the edited captions; what is said of it."""
    root = config.folders.find_video_folder(text_field(folder))
    pairs = [(text_field(row[0]), text_field(row[3])) for row in rows if len(row) > 3 and row[0]]
    files = write_captions(root, pairs, text_field(prompt).strip())
    names = ", ".join(file.relative_to(root).as_posix() for file in files)
    return f"written: {names}" if files else "no caption has changed"


def build_look(gr: Any, config: AppConfig, fields: dict[str, Any]) -> None:
    """Build the part before a training: clips, captions and the plan."""
    with gr.Row():
        look_button = gr.Button("Look at the clips", elem_id="look")
        plan_button = gr.Button("Plan and times", elem_id="plan")
    lines = gr.Textbox(
        label="Plan, or what splitting says", interactive=False, lines=3, max_lines=16, elem_id="plan-lines"
    )
    left_out = gr.Dataframe(
        headers=list(LEFT_OUT_COLUMNS), datatype="str", interactive=False, wrap=True, elem_id="left-out", max_height=240
    )
    captions = gr.Dataframe(
        headers=list(CAPTION_COLUMNS),
        datatype="str",
        type="array",
        interactive=True,
        static_columns=[0, 1, 2],
        wrap=True,
        elem_id="captions",
        max_height=360,
        label="Captions: edit the last column",
    )
    save = gr.Button("Save the captions beside the videos", elem_id="save-captions")
    inputs = list(fields.values())

    def look(*values: Any) -> tuple[str, list[list[Any]], list[list[Any]]]:
        """What splitting would use, the videos left out, and the captions."""
        request = build_request(dict(zip(fields, values, strict=True)))
        return show_look(look_at_folder(request.arguments(config)))

    def plan(*values: Any) -> str:
        """The pipeline's plan for these fields."""
        return describe_plan(build_request(dict(zip(fields, values, strict=True))).arguments(config))

    look_button.click(explain_errors(look), inputs, [lines, left_out, captions], **LOOK_QUEUE, **HIDDEN)
    plan_button.click(explain_errors(plan), inputs, lines, **LOOK_QUEUE, **HIDDEN)
    save.click(
        explain_errors(partial(save_captions, config)),
        [captions, fields["videos"], fields["prompt"]],
        lines,
        **LOOK_QUEUE,
        **HIDDEN,
    )


def build_progress(gr: Any) -> tuple[Any, list[Any], dict[str, Any]]:
    """Build the part that shows a training: the choice of one, what is shown of it, and the buttons."""
    job = list_field(gr, [], label="Training", elem_id="job")
    state = gr.Textbox(label="State", interactive=False, elem_id="job-state", lines=2, max_lines=4)
    with gr.Row():
        stop = gr.Button("Stop", variant="stop", elem_id="stop")
        go_on = gr.Button("Continue", elem_id="continue")
    losses = gr.HTML(elem_id="losses")
    report = gr.HTML(elem_id="job-report")
    log = gr.Textbox(label="The end of its log", interactive=False, lines=4, max_lines=15, elem_id="log")
    return job, [state, losses, log, report], {"stop": stop, "continue": go_on}


def job_choice(gr: Any, config: AppConfig, value: str | None = None) -> Any:
    """The choice of a training: the one named `value`, else one that runs, else the newest."""
    jobs = list_jobs(config)
    running = [item for item in jobs if item.state() in (RUNNING, STOPPING)]
    first = value or next((item.root.name for item in [*running, *jobs]), None)
    return gr.update(choices=[item.root.name for item in jobs], value=first)


def build_train_tab(gr: Any, config: AppConfig) -> tuple[Callable[[], list[Any]], list[Any]]:
    """Build the tab; a function that lists folders and trainings anew, and the components that it fills."""
    fields = build_fields(gr)
    build_upload(gr, config, fields["videos"])
    build_look(gr, config, fields)
    start_button = gr.Button("Start training", variant="primary", elem_id="start")
    job, shown, buttons = build_progress(gr)

    def start(*values: Any) -> Any:
        """Start a training of these fields, and choose it."""
        request = build_request(dict(zip(fields, values, strict=True)))
        request.job(config).start(request.arguments(config))
        return job_choice(gr, config, request.name)

    def show(name: str) -> tuple[str, str, str, str]:
        """State, losses, end of the log and report of a training."""
        return show_progress(config, find_job(config, name)) if name else ("", "", "", "")

    def stop(name: str) -> tuple[str, str, str, str]:
        """Ask a training to save and end; what `show` shows."""
        find_job(config, name).stop()
        return show(name)

    def go_on(name: str) -> tuple[str, str, str, str]:
        """Start a training again where it stopped; what `show` shows."""
        item = find_job(config, name)
        item.start(item.arguments())
        return show(name)

    start_button.click(explain_errors(start), list(fields.values()), job, **LOOK_QUEUE, **HIDDEN)
    buttons["stop"].click(explain_errors(stop), job, shown, **HIDDEN)
    buttons["continue"].click(explain_errors(go_on), job, shown, **LOOK_QUEUE, **HIDDEN)
    job.change(explain_errors(show), job, shown, **HIDDEN)
    gr.Timer(REFRESH_SECONDS).tick(explain_errors(show), job, shown, api_visibility="private", show_progress="hidden")

    def refresh() -> list[Any]:
        """The choices of a folder and of a training, read anew."""
        return [gr.update(choices=list_video_folders(config.folders.videos)), job_choice(gr, config)]

    return refresh, [fields["videos"], job]
