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
        prompts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
            for prompt in prompts
        ]
    chosen: list[list[int]] = tokenizer(prompts, add_special_tokens=False).input_ids
    return chosen
