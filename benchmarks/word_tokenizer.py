"""A tokenizer that gives every id of a vocabulary a word, for models without one.

SGLang's own benchmark counts tokens by the text that comes, so a server with dummy weights must
have a text for whatever it generates.
"""

import json
from pathlib import Path


def write_word_tokenizer(model_path: Path, folder: Path) -> None:
    """Writes a tokenizer for the vocabulary of a model.

    Args:
        model_path: Folder with the model's `config.json`.
        folder: Where it goes.
    """
    # Takes seconds, so it is not imported with the benchmark.
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    size = json.loads((model_path / "config.json").read_text())["vocab_size"]
    words = {f"w{index}": index for index in range(size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
