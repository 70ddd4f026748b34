"""LoRA fine-tuning of MMAudio: video and text to sound, taught the sounds of one's own videos."""
