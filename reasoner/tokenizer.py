"""The reasoner's tokenizer: one token per word of a problem, bytes for any other text.

``python -m reasoner.tokenizer`` writes the tokenizer's files into
``reasoner/model`` and checks that problems survive text -> tokens -> text unchanged. A word's token
holds the blank before it, as in any byte-level vocabulary, so decoding adds and drops nothing.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from reasoner import REASONER
from reasoner.problem import EOS, NUM_NAMES, REGIMES, make_problem

if TYPE_CHECKING:
    from transformers import Qwen2Tokenizer

PAD = "<pad>"
MAX_LENGTH = 16384
VOCAB_SIZE = 1536  # rows of the embedding; a multiple of 64 above the number of tokens
CHAT_TEMPLATE = "{{ messages | map(attribute='content') | join(' ') }}"

FIRST_NAME = 64
_INNER = [*"0123456789", *"+-=;:", "given", "solve", "answer"]
# The first word of a prompt has no blank before it, and JSON needs none.
_BARE = ["program", "{", "}", "[", "]", ",", '"answer"', '"value"', "true", "false", "null"]
_NAMES = [f"v{i}" for i in range(NUM_NAMES)]
_WORDS = [PAD, EOS, *_BARE, *_INNER]
VOCAB = {word: index for index, word in enumerate(_WORDS)}
VOCAB |= {word: FIRST_NAME + index for index, word in enumerate(_NAMES)}


def encode(text: str) -> list[int]:
    """Encodes a problem or a chain without the tokenizers library."""
    return [VOCAB[word] for word in text.split()]


def build() -> "Qwen2Tokenizer":
    """Builds the tokenizer that the model is served with.

    It is Qwen2's own class, which transformers picks for every model of that type, with our words
    as added tokens and no merges, so that other text falls to bytes.
    """
    from tokenizers import AddedToken, pre_tokenizers
    from transformers import Qwen2Tokenizer

    blank = {*_INNER, *_NAMES}
    spelled = {word: f" {word}" if word in blank else word for word in VOCAB}
    vocab = {spelled[word]: index for word, index in VOCAB.items()}
    vocab |= {f"<unused{index}>": index for index in range(len(_WORDS), FIRST_NAME)}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab.setdefault(letter, len(vocab))
    assert sorted(vocab.values()) == list(range(len(vocab)))
    assert len(vocab) <= VOCAB_SIZE
    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=[],
        eos_token=EOS,
        pad_token=PAD,
        unk_token=PAD,
        model_max_length=MAX_LENGTH,
    )
    words = [spelled[word] for word in VOCAB if word not in (PAD, EOS)]
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def check(folder: Path = REASONER) -> None:
    """Checks the saved tokenizer on problems, other text, chat and token-by-token decoding.

    Args:
        folder: Folder with the tokenizer's files and the model's ``config.json``.

    Raises:
        AssertionError: A text does not survive, or chat and plain prompts differ in tokens.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in ("Zwölf Boxkämpfer, v10x!\n", '{"answer": 7}', "v3 v31"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    for seed in range(20):
        problem = make_problem(REGIMES[seed % 2], 10 + seed, seed, seed)
        text = f"{problem.prompt} {problem.chain}"
        ids = tokenizer(text).input_ids
        assert ids == encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer(f" {problem.chain}{EOS}").input_ids == encode(f"{problem.chain} {EOS}")
        message = [{"role": "user", "content": problem.prompt}]
        chat = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        assert chat == problem.prompt
        # A streaming server decodes a window of tokens and sends what the last one added.
        streamed = ""
        for end in range(1, len(ids) + 1):
            begin = max(0, end - 6)
            window = tokenizer.decode(ids[begin:end])
            streamed += window[len(tokenizer.decode(ids[begin : end - 1])) :]
        assert streamed == text


def main() -> None:
    """Writes the tokenizer into the model folder and checks it."""
    REASONER.mkdir(exist_ok=True)
    build().save_pretrained(REASONER, save_jinja_files=False)
    check()
    print(f"tokenizer in {REASONER}")


if __name__ == "__main__":
    main()
