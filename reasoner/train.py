"""Trains the reasoner: ``python -m reasoner.train --out DIR``.

Stages lengthen the problems; a stage ends when the model solves it or at its share of the
training, and the last stage takes the rest while the learning rate falls to zero. The training
ends after ``--seconds`` or ``--tokens``, whichever comes first. The forward pass runs in bfloat16
as the served model does, over float32 master weights. With ``--weights`` it begins with those of a
trained model and in the last stage, whose problems ``--lines`` makes longer.
"""

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from reasoner.problem import EOS
from reasoner.stream import CLASS_NAMES, LOOKUP, SKIP, Mix, make_batch
from reasoner.tokenizer import MAX_LENGTH, PAD, VOCAB, VOCAB_SIZE, build

CLASSES = len(CLASS_NAMES)


@dataclass(frozen=True)
class Stage:
    """A training stage.

    Attributes:
        mix: What its batches hold.
        share: Share of the whole training after which it ends in any case.
        goal: Accuracy of every class over one report at which it ends; over 1 for never.
    """

    mix: Mix
    share: float
    goal: float


STAGES = (
    Stage(Mix((2, 8), names=120, recall=0.6, tokens=32768), 0.18, 0.97),
    Stage(Mix((2, 16), recall=0.4, tokens=49152), 0.16, 0.98),
    Stage(Mix((8, 40), recall=0.1, tokens=65536), 0.10, 0.99),
    Stage(Mix((16, 110), recall=0.05, tokens=65536, short=0.2), 0.10, 0.996),
    Stage(Mix((4, 265), tokens=65536, short=0.2), 1.0, 2.0),
)


class Batches(IterableDataset):
    """An endless stream of batches; the seed, stage and step alone decide each of them."""

    def __init__(self, seed: int, stage: int, mix: Mix, first_step: int) -> None:
        self.seed, self.stage, self.mix, self.first_step = seed, stage, mix, first_step

    def __iter__(self):
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        step = self.first_step + worker
        while True:
            tokens, classes = make_batch(
                np.random.default_rng([self.seed, self.stage, step]), self.mix
            )
            yield torch.from_numpy(tokens), torch.from_numpy(classes)
            step += workers


def make_config(args: argparse.Namespace) -> Qwen2Config:
    """Returns the architecture: Qwen2 with a head size of its own."""
    return Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        vocab_size=VOCAB_SIZE,
        hidden_size=args.hidden,
        intermediate_size=args.intermediate,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads,
        head_dim=64,
        max_position_embeddings=MAX_LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": args.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=VOCAB[EOS],
        pad_token_id=VOCAB[PAD],
    )


def make_model(args: argparse.Namespace) -> Qwen2ForCausalLM:
    """Returns new weights, or those of ``--weights``, in float32."""
    if args.weights:
        return Qwen2ForCausalLM.from_pretrained(args.weights, dtype=torch.float32)
    return Qwen2ForCausalLM(make_config(args))


def save_model(model: Qwen2ForCausalLM, folder: Path) -> None:
    """Saves weights in bfloat16 with everything a server needs beside them."""
    served = Qwen2ForCausalLM(model.config).to(torch.bfloat16)
    served.load_state_dict(model.state_dict())
    served.config.dtype = torch.bfloat16
    served.generation_config = GenerationConfig(
        eos_token_id=VOCAB[EOS], pad_token_id=VOCAB[PAD], do_sample=False
    )
    served.save_pretrained(folder)
    build().save_pretrained(folder, save_jinja_files=False)


def loss_and_hits(hidden: Tensor, weight: Tensor, tokens: Tensor, classes: Tensor):
    """Computes the mean loss over the wanted tokens and what was right.

    Args:
        hidden: Final states, bfloat16 ``[rows, length, hidden]``.
        weight: Tied embedding, ``[vocabulary, hidden]``.
        tokens: int64 ``[rows, length]``.
        classes: int64 ``[rows, length]``; class ``SKIP`` does not count.

    Returns:
        ``(loss, hits)``; hits is float32 ``[classes, 2]``, right and all tokens of each class.
    """
    target, kind = tokens[:, 1:].flatten(), classes[:, 1:].flatten()
    logits = (hidden[:, :-1] @ weight.to(hidden.dtype).T).float().flatten(0, 1)
    loss = nn.functional.cross_entropy(logits, target, reduction="none")
    wanted = kind != SKIP
    loss = (loss * wanted).sum() / wanted.sum()
    right = (logits.argmax(-1) == target).float()
    one_hot = (kind[:, None] == torch.arange(CLASSES, device=kind.device)).float()
    return loss, torch.stack([(one_hot * right[:, None]).sum(0), one_hot.sum(0)], dim=1)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Splits the parameters; norms, biases and the embedding take no weight decay."""
    decay, plain = [], []
    for name, parameter in model.named_parameters():
        (plain if parameter.ndim < 2 or "embed" in name else decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


class Trainer:
    """Model, optimiser and the place in the curriculum; all of it goes into a checkpoint."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = torch.device(args.device)
        torch.manual_seed(args.seed)
        self.model = make_model(args).to(self.device)
        fused = self.device.type == "cuda"
        self.optimiser = torch.optim.AdamW(
            parameter_groups(self.model, args.weight_decay),
            lr=args.lr,
            betas=(0.9, 0.98),
            fused=fused,
        )
        first = len(STAGES) - 1 if args.weights else 0
        self.place = {"stage": first, "step": 0, "began": 0.0, "tokens": 0, "updates": 0}
        self.seconds = 0.0
        if args.resume:
            self.load(args.resume)
        self.loss_and_hits = loss_and_hits
        if args.compile:
            # Compiling one layer serves all of them, and dynamic shapes serve every length.
            for layer in self.model.model.layers:
                layer.compile(dynamic=True)
            self.loss_and_hits = torch.compile(loss_and_hits, dynamic=True)

    def load(self, path: Path) -> None:
        """Restores a checkpoint that ``save`` wrote; AdamW turns its moments to float32 again."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.place, self.seconds = state["place"], state["seconds"]

    def save(self) -> None:
        """Writes the resumable checkpoint and the model in served form."""
        out: Path = self.args.out
        out.mkdir(parents=True, exist_ok=True)
        state = {"place": self.place, "seconds": self.seconds, "model": self.model.state_dict()}
        optimiser = self.optimiser.state_dict()
        # Half the size; the rounding at a resume is far below a batch's noise.
        optimiser["state"] = {
            index: {k: x if k == "step" else x.bfloat16() for k, x in moments.items()}
            for index, moments in optimiser["state"].items()
        }
        torch.save({**state, "optimiser": optimiser}, out / "new.pt")
        (out / "new.pt").replace(out / "checkpoint.pt")
        save_model(self.model, out / "model")

    def progress(self) -> float:
        """Returns the share of the training that is done."""
        return max(self.place["tokens"] / self.args.tokens, self.seconds / self.args.seconds)

    def learning_rate(self) -> float:
        """Linear warm-up, then constant, then linear to zero at the end of the training."""
        left = 1 - self.progress()
        warm = (self.place["updates"] + 1) / self.args.warmup
        return self.args.lr * min(1.0, warm, max(left, 0.0) / self.args.decay)

    def update(self, tokens: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Takes one step of the optimiser on one batch, both ``[rows, length]``."""
        tokens = tokens.to(self.device, non_blocking=True).long()
        classes = classes.to(self.device, non_blocking=True).long()
        embedding = self.model.model.embed_tokens
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.autocast):
            states = embedding(tokens)
            # The served model's residual stream is bfloat16 too.
            states = states.to(torch.bfloat16) if self.args.autocast else states
            hidden = self.model.model(inputs_embeds=states, use_cache=False).last_hidden_state
            loss, hits = self.loss_and_hits(hidden, embedding.weight, tokens, classes)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate()
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.place["step"] += 1
        self.place["updates"] += 1
        self.place["tokens"] += tokens.numel()
        return loss.detach(), hits

    def run(self) -> None:
        """Trains to the end, or for ``--max-seconds``, then saves."""
        begin, before = time.time(), self.seconds
        saved = begin
        while self.progress() < 1 and self.seconds - before < self.args.max_seconds:
            for _ in self.run_stage(begin, before):
                if time.time() - saved > self.args.save_every:
                    self.save()
                    saved = time.time()
        self.save()

    def run_stage(self, begin: float, before: float):
        """Trains in one stage to its end; yields after each report."""
        args, place = self.args, self.place
        stage = STAGES[min(place["stage"], len(STAGES) - 1)]
        mix = replace(stage.mix, tokens=max(1, int(stage.mix.tokens * args.batch_scale)))
        if stage is STAGES[-1] and args.lines:
            mix = replace(mix, lines=(mix.lines[0], args.lines))
        batches = Batches(args.seed, place["stage"], mix, place["step"])
        loader = DataLoader(
            batches,
            batch_size=None,
            num_workers=args.workers,
            prefetch_factor=8 if args.workers else None,
            pin_memory=self.device.type == "cuda",
        )
        hits, reported, counted = (
            torch.zeros(CLASSES, 2, device=self.device),
            time.time(),
            place["tokens"],
        )
        for tokens, classes in loader:
            loss, new_hits = self.update(tokens, classes)
            hits += new_hits
            now = time.time()
            self.seconds = before + now - begin
            if place["step"] % args.report_steps and self.progress() < 1:
                continue
            right, total = hits.cpu().unbind(1)
            accuracy = right / total.clamp(min=1)
            self.report(loss.item(), accuracy, (place["tokens"] - counted) / (now - reported))
            hits.zero_()
            reported, counted = now, place["tokens"]
            yield
            if self.progress() >= 1 or now - begin > args.max_seconds:
                return
            done = accuracy[LOOKUP:].min() >= stage.goal
            if done or self.progress() - place["began"] >= stage.share:
                place.update(stage=place["stage"] + 1, step=0, began=self.progress())
                return

    def report(self, loss: float, accuracy: Tensor, speed: float) -> None:
        """Prints one line of progress."""
        named = zip(CLASS_NAMES[1:], accuracy[1:].tolist(), strict=True)
        parts = [f"{name} {value:.5f}" for name, value in named]
        place = self.place
        print(
            f"stage {place['stage']} step {place['step']} tokens {place['tokens'] / 1e6:.1f}M"
            f" loss {loss:.5f} {' '.join(parts)} lr {self.learning_rate():.2e}"
            f" {speed / 1e3:.0f}k/s {self.seconds:.0f}s",
            flush=True,
        )


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint and model")
    parser.add_argument("--resume", type=Path, help="checkpoint to go on from")
    parser.add_argument("--weights", type=Path, help="folder of a trained model to begin with")
    parser.add_argument("--lines", type=int, help="most lines of a problem in the last stage")
    parser.add_argument("--seconds", type=float, default=1e9, help="training time in all runs")
    parser.add_argument("--tokens", type=float, default=1e12, help="training tokens in all runs")
    parser.add_argument("--max-seconds", type=float, default=1e9, help="stop this run after")
    parser.add_argument("--save-every", type=float, default=120, help="seconds between checkpoints")
    parser.add_argument("--report-steps", type=int, default=50)
    parser.add_argument("--workers", type=int, default=12, help="processes that make batches")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--warmup", type=int, default=200, help="updates until the full rate")
    parser.add_argument(
        "--decay", type=float, default=0.5, help="last share of training, with falling rate"
    )
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--batch-scale", type=float, default=1.0)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--intermediate", type=int, default=768)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--rope-theta", type=float, default=1e8)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--no-autocast", dest="autocast", action="store_false")
    return parser.parse_args()


def main() -> None:
    """Trains with the arguments of the command line, which it prints first."""
    args = parse_args()
    print(json.dumps(vars(args), default=str), flush=True)
    trainer = Trainer(args)
    print(f"{sum(p.numel() for p in trainer.model.parameters())} parameters", flush=True)
    trainer.run()


if __name__ == "__main__":
    main()
