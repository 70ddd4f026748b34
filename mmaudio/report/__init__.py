"""The HTML report of an evaluation: text, charts, clips and templates."""
