"""The guide's Python and YAML blocks, word for word."""

from __future__ import annotations

import pytest

TARGETS = """\
# ✅ TARGETED (where adaptation happens)
joint_blocks[*].latent_block.attn.qkv    # Cross-modal attention
joint_blocks[*].latent_block.ffn          # Reasoning MLP
joint_blocks[*].clip_block.attn.qkv       # Video attention  
joint_blocks[*].clip_block.ffn            # Video MLP
joint_blocks[*].text_block.attn.qkv       # Text attention
joint_blocks[*].text_block.ffn            # Text MLP
fused_blocks[*].attn.qkv                  # Final attention
fused_blocks[*].ffn                       # Final MLP

# ❌ PRESERVED (general knowledge kept intact)
CLIP model                                # Visual understanding
Synchformer                              # Temporal synchronization  
VAE/AutoEncoder                          # Audio latents
BigVGAN                                  # Audio synthesis
input_projections                        # Feature mapping
final_layer                              # Output projection
"""
HOW_IT_WORKS = """\
# Original transformation
output = W_original @ input

# LoRA transformation  
output = W_original @ input + (B @ A @ input) * (alpha / rank)
#        ^preserved^          ^adaptation^

# Where:
# - W_original: Frozen pretrained weights (preserve knowledge)
# - A, B: Small learnable matrices (rank << hidden_dim)
# - alpha/rank: Scaling factor
"""
METHOD_3 = """\
from mmaudio.model.lora_mmaudio import load_pretrained_with_lora

# Load model with LoRA
lora_model = load_pretrained_with_lora(
    model_name='small_16k',
    lora_checkpoint='path/to/checkpoint.pt'
)

# Print LoRA info
lora_model.print_parameter_info()

# Generate audio
audio = lora_model.generate_from_video(
    video_path='test.mp4',
    prompt='audio for this video'
)
"""
CUSTOM_CONFIGURATION = """\
from mmaudio.model.lora import LoRAConfig

# Custom configuration
config = LoRAConfig(
    rank=128,                    # Higher capacity
    alpha=256.0,                 # Stronger adaptation
    dropout=0.05,                # Less regularization
    target_modules=[             # Custom targets
        "joint_blocks.*.latent_block.attn.qkv",
        "fused_blocks.*.attn.qkv",
    ]
)
"""
MERGING = """\
# Merge LoRA weights for deployment
merged_model = lora_model.merge_and_save('merged_model.pt')

# Use merged model (no LoRA overhead)
audio = merged_model.generate(video, prompt)
"""
PROGRESSIVE = """\
# Start with small rank, increase if needed
configs = [
    LoRAConfig(rank=32, max_steps=1000),   # Phase 1
    LoRAConfig(rank=64, max_steps=2000),   # Phase 2  
    LoRAConfig(rank=128, max_steps=3000),  # Phase 3
]
"""
CHECKS = """\
# Check LoRA is applied correctly
lora_model.print_parameter_info()
# Should show ~10M trainable parameters

# Verify target modules
for name, module in lora_model.named_modules():
    if 'lora' in name:
        print(f"LoRA applied to: {name}")

# Check training progress
tensorboard --logdir ./output/exp_name/
"""
PYTHON = (TARGETS, HOW_IT_WORKS, METHOD_3, CUSTOM_CONFIGURATION, MERGING, PROGRESSIVE, CHECKS)
NOT_CODE = "Base model memory:      8GB"
"""Begins the one block called python that is a table of claims."""
YAML = {
    "configuration": """\
rank: 64              # Low-rank bottleneck
alpha: 128.0          # Scaling factor (2x rank)
dropout: 0.1          # Regularization
learning_rate: 5e-4   # 10x higher than full fine-tuning
""",
    "basic": """\
# config/lora_config.yaml
lora:
  rank: 64              # Higher rank = more capacity (16, 32, 64, 128)
  alpha: 128.0          # Scaling (typically 2x rank)
  dropout: 0.1          # Regularization (0.0 to 0.3)
""",
    "training": """\
# Optimized for small datasets
batch_size: 8                     # Larger batches possible with LoRA
gradient_accumulation_steps: 4    # Effective batch = 32
learning_rate: 5e-4               # Higher LR works with LoRA
max_steps: 3000                   # Faster convergence
warmup_steps: 200
""",
    "hardware": """\
# A100 optimization
amp: true                         # Mixed precision
gradient_checkpointing: true      # Memory efficiency
compile: false                    # Stability for LoRA
""",
    "poor results": """\
# Increase adaptation capacity
lora:
  rank: 128             # Double the rank
  alpha: 256.0          # Double the alpha
  dropout: 0.05         # Reduce regularization

# Increase training
max_steps: 5000         # More training steps
learning_rate: 1e-3     # Higher learning rate
""",
    "overfitting": """\
# Increase regularization
lora:
  dropout: 0.2          # More dropout
  alpha: 64.0           # Reduce scaling

# Reduce training
max_steps: 2000         # Fewer steps
learning_rate: 2e-4     # Lower learning rate
""",
    "dataset sizes": """\
# Very small (5-10 videos)
rank: 32
max_steps: 1500
learning_rate: 2e-4

# Small (10-50 videos)  
rank: 64
max_steps: 3000
learning_rate: 5e-4

# Medium (50+ videos)
rank: 128
max_steps: 5000
learning_rate: 1e-3
""",
    "out of memory": """\
# Reduce batch size
batch_size: 4
gradient_accumulation_steps: 8

# Enable checkpointing
gradient_checkpointing: true
""",
    "no improvement": """\
# Increase LoRA capacity
rank: 128
alpha: 256.0

# Check target modules
target_modules: [...] # Ensure key modules included
""",
    "unstable": """\
# Reduce learning rate
learning_rate: 2e-4

# Add warmup
warmup_steps: 500
""",
    "poor generalization": """\
# Increase regularization
dropout: 0.2
weight_decay: 0.02

# Use validation split
validation:
  enabled: true
  split_ratio: 0.2
""",
}
"""The settings, by the guide's sections."""
MODEL = "tiny_16k"


def settings_blocks():
    """A test parameter for each settings block; the dataset sizes are three, each with the same keys."""
    parameters = []
    for name, text in YAML.items():
        parts = text.strip().split("\n\n") if name == "dataset sizes" else [text]
        for number, block in enumerate(parts):
            block = block.replace("[...]", "['fused_blocks[*].attn.qkv']")
            parameters.append(pytest.param(block, id=f"{name} {number}".strip(" 0")))
    return parameters
