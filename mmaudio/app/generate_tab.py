"""The tab Generate: a video or a text, adapters and their strengths; takes with base and adapter side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from mmaudio.app.config import AppConfig
from mmaudio.app.detached_job import GPU_LOCK
from mmaudio.app.experiment_list import find_experiments
from mmaudio.app.handlers import (
    GPU_QUEUE,
    HIDDEN,
    decimal,
    explain_errors,
    list_field,
    optional_number,
    text_field,
    whole_number,
)
from mmaudio.app.markup import show_takes
from mmaudio.app.take_pairs import MAX_TAKES, TakeRequest, generate_pairs
from mmaudio.app.video_upload import check_upload
from mmaudio.data.video_files import VIDEO_SUFFIXES, find_videos
from mmaudio.errors import ConfigError, DataError
from mmaudio.generation.take_ranking import RANKINGS
from mmaudio.lora.strength import MAX_STRENGTH
from mmaudio.model.spec import MODELS
from mmaudio.utils.locks import FileLocks

if TYPE_CHECKING:
    import gradio

MAX_VIDEOS = 500
"""Videos of the folder that the list offers."""
NONE = ""


def list_videos(config: AppConfig) -> list[str]:
    """Names of videos in the folder and its sub-folders; none leads out of it."""
    root = config.folders.videos
    try:
        paths = find_videos(root, recursive=True)
    except DataError:
        return []
    videos = [path for path in paths if path.suffix.lower() in VIDEO_SUFFIXES and path.resolve().is_relative_to(root)]
    return [path.relative_to(root).as_posix() for path in videos[:MAX_VIDEOS]]


def list_adapters(config: AppConfig) -> list[str]:
    """Names of the experiments that have an adapter."""
    return [experiment.name for experiment in find_experiments(config.folders) if experiment.adapter]


def build_request(config: AppConfig, fields: dict[str, Any]) -> TakeRequest:
    """The request of the fields; ConfigError or DataError for what a browser may not ask."""
    upload, name = fields["upload"], text_field(fields["video"])
    video = check_upload(config.folders, upload) if upload else config.folders.find_video(name) if name else None
    chosen = [(text_field(fields[f"adapter_{n}"]), decimal(fields[f"strength_{n}"], "strength")) for n in (1, 2)]
    return TakeRequest(
        video,
        text_field(fields["prompt"]).strip(),
        text_field(fields["negative_prompt"]).strip(),
        tuple((adapter, 1.0 if strength is None else strength) for adapter, strength in chosen if adapter),
        text_field(fields["model"]),
        whole_number(fields["seed"], "seed") or 0,
        whole_number(fields["takes"], "takes") or 1,
        text_field(fields["rank_by"]),
        decimal(fields["seconds"], "seconds"),
        whole_number(fields["steps"], "steps"),
        decimal(fields["guidance"], "guidance"),
        bool(fields["has_base"]),
    )


def build_fields(gr: Any) -> dict[str, gradio.components.Component]:
    """The fields, by the names that `build_request` reads."""
    fields: dict[str, Any] = {}
    with gr.Row():
        with gr.Column(min_width=300):
            fields["upload"] = gr.Video(label="A video of yours", sources=["upload"], elem_id="upload", height=260)
            fields["video"] = list_field(gr, [NONE], label="or one of the folder of videos; neither: the prompt alone")
        with gr.Column(min_width=300):
            fields["prompt"] = gr.Textbox(label="Prompt", lines=2, elem_id="prompt")
            fields["negative_prompt"] = gr.Textbox(label="Negative prompt: what shall not be heard")
            fields["adapter_1"] = list_field(gr, [NONE], label="Adapter", elem_id="adapter")
            fields["strength_1"] = gr.Slider(0, MAX_STRENGTH, 1, step=0.05, label="Strength")
            fields["has_base"] = gr.Checkbox(True, label="The base beside the adapter")
    with gr.Accordion("Takes, a second adapter, length and steps", open=False):
        with gr.Row():
            fields["takes"] = gr.Slider(1, MAX_TAKES, 1, step=1, label="Takes", elem_id="takes")
            fields["rank_by"] = gr.Dropdown([("no ranking", NONE), *RANKINGS], value=NONE, label="Best first, by")
            fields["seed"] = gr.Number(0, label="Seed", precision=0)
        with gr.Row():
            fields["adapter_2"] = list_field(gr, [NONE], label="Second adapter: the changes add up")
            fields["strength_2"] = gr.Slider(0, MAX_STRENGTH, 1, step=0.05, label="Its strength")
            fields["model"] = gr.Dropdown(
                [("small_16k", NONE), *(name for name in MODELS if name != "small_16k")],
                value=NONE,
                label="Base model without an adapter",
                elem_id="base-model",
            )
        with gr.Row():
            fields["seconds"] = optional_number(gr, "Seconds (empty: all of the video; 8 of a text)")
            fields["steps"] = optional_number(gr, "Steps (empty: the model's)", elem_id="steps")
            fields["guidance"] = optional_number(gr, "Guidance (empty: the model's)")
    return fields


def build_generate_tab(gr: Any, config: AppConfig, locks: FileLocks) -> tuple[Callable[[], list[Any]], list[Any]]:
    """Build the tab; a function that lists videos and adapters anew, and the components that it fills."""
    fields = build_fields(gr)
    button = gr.Button("Generate", variant="primary", elem_id="generate")
    status = gr.Textbox(label="State", interactive=False, elem_id="generate-state", max_lines=3)
    players = gr.HTML(elem_id="takes")

    def generate(*values: Any) -> Iterator[tuple[str, str]]:
        """The state and the players, first while generating, then with the takes."""
        request = build_request(config, dict(zip(fields, values, strict=True)))
        if not locks.acquire(GPU_LOCK):
            raise ConfigError("a training is at work; wait until it has ended, or stop it: it can be continued")
        try:
            steps: list[str] = []
            yield "generating ...", ""
            takes = generate_pairs(request, config, steps.append)
        finally:
            locks.release(GPU_LOCK)
        folder = takes[0].sound.parent.relative_to(config.folders.output).parent.as_posix()
        yield f"done; the files are in {folder}", show_takes(takes, request.rank_by, bool(request.adapters))

    button.click(explain_errors(generate), list(fields.values()), [status, players], **GPU_QUEUE, **HIDDEN)

    def refresh() -> list[Any]:
        """The choices of a video and of two adapters, read anew."""
        adapters = [("none", NONE), *list_adapters(config)]
        videos = [("none", NONE), *list_videos(config)]
        return [gr.update(choices=videos), gr.update(choices=adapters), gr.update(choices=adapters)]

    return refresh, [fields["video"], fields["adapter_1"], fields["adapter_2"]]
