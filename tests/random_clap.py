"""A tiny CLAP model with random weights, for tests of what listens with one."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerFast


def write_random_clap(folder: Path) -> None:
    """A tiny CLAP with random values and a few words in `folder`, as transformers saves it."""
    words = ("<s>", "<pad>", "</s>", "<unk>", "a", "ball", "bounces", "dog", "barks")
    tokens = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokens.pre_tokenizer = Whitespace()
    text = {
        "vocab_size": len(words),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 40,
        "projection_dim": 16,
    }
    audio = {
        "hidden_size": 64,
        "patch_embeds_hidden_size": 8,
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 2, 2, 2],
        "projection_dim": 16,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=16))
    model.save_pretrained(folder)
    ClapFeatureExtractor(truncation="rand_trunc").save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokens, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
