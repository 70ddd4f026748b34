"""The page in the browser, `mmaudio-lora app`: generate, train, look at experiments.

Gradio is imported in functions only: every other part of the package works without it.
"""
