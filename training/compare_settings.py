"""Compare the settings for small sets: one changed at a time, beside other seeds.

    python training/compare_settings.py --clips demo_output/lora_data/clips.tsv \\
        --features demo_output/lora_data/features --output demo_output/settings
    python training/compare_settings.py --only lora.dropout=0 -- max_steps=600

What follows `--` goes to every run. Run again, it trains only what is missing. Each of the
15 trainings takes about a minute on two CPU cores with bfloat16 instructions.
"""

from mmaudio import cli

if __name__ == "__main__":
    cli.handle_signals()  # the imports below take seconds

from mmaudio.pipeline.ablation import main

if __name__ == "__main__":
    cli.run(main)
