"""The page: its tabs, style and script."""

from __future__ import annotations

from typing import Any

from mmaudio.app.config import AppConfig
from mmaudio.app.experiments_tab import build_experiments_tab
from mmaudio.app.generate_tab import build_generate_tab
from mmaudio.app.handlers import HIDDEN, explain_errors
from mmaudio.app.markup import render
from mmaudio.app.request_guard import RequestGuard
from mmaudio.app.train_tab import build_train_tab
from mmaudio.utils.locks import FileLocks

TITLE = "MMAudio-LoRA"
KEEP_UPLOADS = (3600, 86400)
"""Every so many seconds uploads and copies are removed that are older than so many."""


def build_page(config: AppConfig, locks: FileLocks) -> Any:
    """The page as Gradio's Blocks."""
    import gradio as gr

    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=KEEP_UPLOADS, fill_width=False) as page:
        gr.Markdown(f"# {TITLE}")
        with gr.Tabs():
            tabs = []
            with gr.Tab("Generate", id="generate") as tab:
                tabs.append((tab, *build_generate_tab(gr, config, locks)))
            with gr.Tab("Train", id="train") as tab:
                tabs.append((tab, *build_train_tab(gr, config)))
            with gr.Tab("Experiments", id="experiments") as tab:
                tabs.append((tab, *build_experiments_tab(gr, config)))
        for tab, refresh, components in tabs:
            page.load(explain_errors(refresh), None, components, **HIDDEN)
            tab.select(explain_errors(refresh), None, components, **HIDDEN)
    return page


def launch_page(page: Any, config: AppConfig, host: str, port: int | None, password: str, max_upload: str) -> str:
    """Serve the page in the background; its address."""
    import gradio as gr
    from starlette.middleware import Middleware

    hosts = None if password else ("127.0.0.1", "localhost", "[::1]")
    fonts = ["system-ui", "sans-serif"]
    _, address, _ = page.queue(default_concurrency_limit=4, max_size=32).launch(
        server_name=host,
        server_port=port,
        share=False,
        inbrowser=False,
        prevent_thread_lock=True,
        quiet=True,
        auth=(lambda user, text: is_password(text, password)) if password else None,
        auth_message="Any name, and the password that the app was started with.",
        allowed_paths=[str(config.folders.output)],
        max_file_size=max_upload,
        app_kwargs={"middleware": [Middleware(RequestGuard, folders=config.folders, hosts=hosts)]},
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        run_history=False,
        show_error=False,
        footer_links=[],
        _frontend=False,  # no request of its own, which a busy machine may not answer within 3 s
        theme=gr.themes.Default(font=fonts, font_mono=["ui-monospace", "monospace"]),
        css=render("page.css.j2"),
        head=render("page.js.j2"),
    )
    return str(address)


def is_password(text: str, password: str) -> bool:
    """Whether a text is the password, in a time that does not tell how much of it is right."""
    import secrets

    return secrets.compare_digest(text.encode(), password.encode())
