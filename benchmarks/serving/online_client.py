"""SGLang's own `sglang.bench_serving`, run in this process, and the tokenizer that it wants."""

import contextlib
import gc
import importlib
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

NAME = "sglang.bench_serving"


def run_client(flags: Sequence[str]) -> None:
    """Runs one benchmark with a command line of its own.

    In a process for each it would spend ten seconds on imports, and be halted by Python's garbage
    collector, for which it finds more to do, while it notes when tokens come.

    Raises:
        RuntimeError: it failed; the text holds what it said.
    """
    said, arguments = io.StringIO(), sys.argv
    try:
        sys.argv = [NAME, *flags]
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            client = importlib.import_module(NAME)
            gc.collect()
            gc.freeze()
            client.cli_main()
    except (Exception, SystemExit) as error:
        raise RuntimeError(f"{NAME} must succeed, got {error!r}:\n{said.getvalue()}") from error
    finally:
        sys.argv = arguments


def write_word_tokenizer(model_path: Path, folder: Path) -> None:
    """Writes a tokenizer that gives every id of a model's vocabulary a word.

    The benchmark counts tokens by the text that comes, so a server with dummy weights must have a
    text for whatever it generates.

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
