"""Train the base model of a tiny world: tokenizer, weights and chat template.

What it is taught is in tiny/worlds.py. Stage 1 (`--skill-steps`) trains full chains only; stage 2 (`--decision-steps`)
adds the decisions. A checkpoint is written every 250 steps, and the same command goes on from it.

    python tiny/train_base.py                                      # united: about an hour on one CPU core
    python tiny/train_base.py --world divided --start tiny/united/model   # from the other's skills: half an hour

The dials of a world can be turned by a short fine-tune of the decisions alone (lab/studies/worlds.py turns some):

    python tiny/train_base.py --start tiny/united/model --go-on-bare 0.3 --decision-steps 300 --out runs/dials/bare-0.3
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import random
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gepa_loop import REFLECTION_PROMPT, reflection_prompt, reflection_record  # noqa: E402
from tiny.problems import FAMILIES, USELESS_HINTS  # noqa: E402
from tiny.worlds import WORLDS, World, reflection_example, solve_example  # noqa: E402
from verify import Grade, feedback  # noqa: E402

BATCH, REFLECTIONS = 64, 6  # sequences per step, and how many of them are reflections
PEAK_RATE, WARMUP = 1.5e-3, 200
WORD = r"\\boxed\{|```|[+*-]?\d+|[A-Za-z]+|#+|\n|[^\s\w]"  # one token each; spaces between them carry nothing
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

# ---------------------------------------------------------------------------------------------- tokenizer and model


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words and the numbers 0-255 as single tokens; anything else is <|unk|>."""
    special = ["<|pad|>", "<|unk|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    grades = [Grade(1.0, True, True, "1"), Grade(0.0, False, True, "1"), Grade(0.0, False, False, "1")]
    texts = [REFLECTION_PROMPT, reflection_prompt("", [reflection_record("", "", "")] * 3), *USELESS_HINTS]
    texts += [f"{family.ask} {' '.join(family.hints)}" for family in FAMILIES.values()]
    texts += [feedback(g, "1") for g in [*grades, Grade(0.0, False, False, None)]]
    texts += [feedback(Grade(0.0, False, False, None), "1", truncated=True), "`: ; , . ? ! \\boxed{}"]
    words = [str(n) for n in range(256)] + [f"{sign}{d}" for sign in "+-" for d in range(1, 10)] + ["*2", "\n"]
    splitter = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)
    for text in texts:
        words += [word for word, _ in splitter.pre_tokenize_str(text)]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(special + words))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unk|>"))
    core.normalizer = normalizers.Replace(Regex(r"\s*\n\s*"), "\n")
    core.pre_tokenizer = splitter
    glue = [(f" {mark}", mark) for mark in [",", ";", ".", ":", "}", "?", "!"]]
    glue += [("\\boxed{ ", "\\boxed{"), (" \n", "\n"), ("\n ", "\n")]
    core.decoder = decoders.Sequence(
        [decoders.WordPiece(prefix="<|glue|>", cleanup=False), decoders.Fuse()]
        + [decoders.Replace(old, new) for old, new in glue]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


# ------------------------------------------------------------------------------------------------------- training


def make_batch(rng: random.Random, tokenizer, world: World, decisions: bool) -> list[tuple[list[int], list[int]]]:
    """BATCH pairs (token ids, labels), labels shifted by one and -100 on the prompt, sorted by length."""
    marks = set(tokenizer.convert_tokens_to_ids(list(world.marks.values())))
    examples = [solve_example(rng, world, decisions) for _ in range(BATCH - REFLECTIONS)]
    examples += [(*reflection_example(rng, world), []) for _ in range(REFLECTIONS)]
    prompts = tokenizer([f"<|user|>{message}<|end|><|assistant|>" for message, _, _ in examples]).input_ids
    responses = tokenizer([f"{response}<|end|>" for _, response, _ in examples]).input_ids
    pairs = []
    for prompt, response, (_, _, drawn) in zip(prompts, responses, examples, strict=True):
        labels = list(response)
        if drawn:
            places = [i for i, token in enumerate(response) if token in marks]
            for i, label in zip(places, tokenizer.convert_tokens_to_ids(drawn), strict=True):
                labels[i] = label
        ids = prompt + response
        pairs.append((ids[:-1], [-100] * (len(prompt) - 1) + labels))
    return sorted(pairs, key=lambda pair: len(pair[0]))


def loss_of(model, batch, pad: int, device: str) -> float:
    """Backward through the batch, in four groups of like length; right padding is harmless under causal attention."""
    tokens, total = sum(label != -100 for _, labels in batch for label in labels), 0.0
    bounds = [0, 24, 48, BATCH - REFLECTIONS, BATCH]
    for start, end in zip(bounds, bounds[1:], strict=False):
        width = len(batch[end - 1][0])
        ids = torch.tensor([i + [pad] * (width - len(i)) for i, _ in batch[start:end]], device=device)
        labels = torch.tensor([lab + [-100] * (width - len(lab)) for _, lab in batch[start:end]], device=device)
        learned = labels != -100
        hidden = model.model(ids).last_hidden_state[learned]
        loss = F.cross_entropy(model.lm_head(hidden), labels[learned], reduction="sum") / tokens
        loss.backward()
        total += loss.item()
    return total


def learning_rate(step: int, skill_steps: int, decision_steps: int) -> float:
    """Warm-up and a cosine to zero in each stage; the second peaks at half the rate.

    >>> [round(learning_rate(step, 5000, 3000), 4) for step in (0, 200, 4999, 5200, 7999)]
    [0.0, 0.0015, 0.0, 0.0007, 0.0]
    """
    decisions = step >= skill_steps
    step, steps = (step - skill_steps, decision_steps) if decisions else (step, skill_steps)
    peak = PEAK_RATE * (0.5 if decisions else 1.0)
    return peak * min(1.0, (step + 1) / WARMUP) * (0.5 + 0.5 * math.cos(math.pi * step / steps))


def train(model, tokenizer, world: World, args: argparse.Namespace) -> None:
    """All steps that the checkpoint beside `args.out` has not seen yet; the loss goes into a log beside it."""
    checkpoint, log_file = args.out.parent / f"{args.out.name}.pt", args.out.parent / f"{args.out.name}.log.jsonl"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.01, betas=(0.9, 0.98))
    steps, first, seconds = args.skill_steps + args.decision_steps, 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, seconds = state["step"], state["seconds"]
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens, from step {first}")

    started, recent = time.time() - seconds, []
    for step in range(first, steps):
        rate = learning_rate(step, args.skill_steps, args.decision_steps)
        rng = random.Random(f"{args.seed}/{step}")  # any step can be drawn alone
        batch = make_batch(rng, tokenizer, world, decisions=step >= args.skill_steps)
        recent.append(update(model, optimizer, rate, batch, tokenizer.pad_token_id))
        if (step + 1) % 50 == 0 or step + 1 == steps:
            line = {"step": step + 1, "loss": round(sum(recent) / len(recent), 4), "lr": round(rate, 7)}
            line |= {"seconds": round(time.time() - started)}
            recent = []
            print(line, flush=True)
            with log_file.open("a") as log:
                log.write(json.dumps(line) + "\n")
        if (step + 1) % 250 == 0 or step + 1 == steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            state["seconds"] = time.time() - started
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
            model.save_pretrained(args.out)
            (args.out / "generation_config.json").unlink()  # all that it says stands in config.json, too
            tokenizer.save_pretrained(args.out, save_jinja_files=False)  # the chat template goes into its config
    print(f"wrote {args.out} after {time.time() - started:.0f} s")


def update(model, optimizer, rate: float, batch, pad: int) -> float:
    """One step of AdamW at that rate. Returns the loss."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = loss_of(model, batch, pad, model.device)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=WORLDS, default="united")
    parser.add_argument("--skill-steps", type=int, default=5000)
    parser.add_argument("--decision-steps", type=int, default=3000)
    parser.add_argument("--start", type=Path, help="fine-tune the decisions of this model; no skill steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="by default where the world's base model is kept")
    # A dial that is not given is suppressed: it stays the world's.
    dials = parser.add_argument_group("dials", "numbers of tiny/worlds.py", argument_default=argparse.SUPPRESS)
    dials.add_argument("--go-on-bare", type=float, metavar="P")
    dials.add_argument("--go-on-hinted", type=float, nargs="+", metavar="P", help="in 1, 2, ... sentences")
    dials.add_argument("--accent-needed", action="store_true")
    dials.add_argument("--locked", nargs="+", choices=FAMILIES)
    args = parser.parse_args()
    turned = {field.name for field in dataclasses.fields(World)} & set(vars(args))
    world = dataclasses.replace(WORLDS[args.world], **{name: getattr(args, name) for name in turned})
    args.out = args.out or world.model
    if args.start:
        args.skill_steps = 0

    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    tokenizer = build_tokenizer()
    model = LlamaForCausalLM.from_pretrained(args.start) if args.start else build_model(tokenizer)
    train(model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, world, args)


if __name__ == "__main__":
    main()
