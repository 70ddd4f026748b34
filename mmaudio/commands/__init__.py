"""The subcommands of `mmaudio-lora`: a thin module per command."""
