"""What is asked: a task's problems as token ids."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from benchmarks.accuracy.task import ReasonerTask, Task


def token_ids(
    tokenizer: PreTrainedTokenizerBase, task: Task, indices: Sequence[int]
) -> list[list[int]]:
    """Returns the prompts of problems, as the chat route makes them of a data set's messages."""
    prompts = [task.prompt(index) for index in indices]
    if not isinstance(task, ReasonerTask):
        prompts = [chat_prompt(tokenizer, prompt) for prompt in prompts]
    return plain_ids(tokenizer, prompts)


def chat_prompt(tokenizer: PreTrainedTokenizerBase, message: str) -> str:
    """Returns a user's message in the chat template, up to where the answer begins."""
    prompt: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
    )
    return prompt


def plain_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Returns the tokens of texts, with nothing added."""
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False).input_ids
    return ids
