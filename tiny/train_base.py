"""Train the tiny base model from scratch: tokenizer, weights and chat template, in tiny/model.

The *instruction* in front of a question decides how thoroughly the model works. After each state it goes on (`;`) with
probability 0.9 when the instruction holds a hint for the question's family and with 0.07 when it does not, so that a
bare hard question (four or five such decisions) fails nearly always, while no single token is as rare as the 0.01 at
which the paper's ratio mask would cut it off. Two lessons are kept apart:

    skill          in half of the texts the whole chain stands there in every context, and only the *labels* of the
                   decision tokens are drawn from the going-on probability, so that states are as right in the bare
                   context as in the hinted one at every depth
    thoroughness   the other half stop where the draw says, and box the state they have reached

Reflection is a skill too: from "current instruction, graded examples" the model learns to write a new instruction:
keep, drop or add a hint, sometimes a useless one. It adds the right hint about 40 % of the time, so evolution has to
select.

Stage 1 (`--skill-steps`) trains full chains only; stage 2 (`--decision-steps`) adds the decisions. A checkpoint is
written every 250 steps, and the same command goes on from it.

    python tiny/problems.py && python tiny/train_base.py        # about an hour on one CPU core, minutes on a GPU

The dial of exploration can be turned by a short fine-tune of the decisions alone (studies/dials.sh turns them all):

    python tiny/train_base.py --start tiny/model --go-on-bare 0.3 --decision-steps 300 --out runs/dials/bare-0.3
"""

from __future__ import annotations

import argparse
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

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from gepa_loop import REFLECTION_PROMPT, reflection_prompt, reflection_record  # noqa: E402
from tiny.problems import EASY, FAMILIES, HARD, OOD, USELESS_HINTS, draw  # noqa: E402
from verify import Grade, feedback  # noqa: E402

BATCH, REFLECTIONS = 64, 6  # sequences per step, and how many of them are reflections
PEAK_RATE, WARMUP = 1.5e-3, 200
LENGTHS = (*EASY, 3, 4, *HARD, *OOD)
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


# ------------------------------------------------------------------------------------------------------- the texts


def draw_instruction(rng: random.Random, family: str, kind: str) -> str:
    """An instruction that is empty ("bare"), holds a hint for the family ("hinted") or only others ("wrong")."""
    if kind == "bare":
        return ""
    hints = [rng.choice(f.hints) for name, f in FAMILIES.items() if name != family] + [rng.choice(USELESS_HINTS)]
    others = rng.sample(hints, rng.choice([1, 1, 2, 3, 4] if kind == "wrong" else [0, 0, 1, 2, 3, 4]))
    if kind == "hinted":
        others.insert(rng.randint(0, len(others)), rng.choice(FAMILIES[family].hints))
    return " ".join(others)


def solve_example(rng: random.Random, go_on: dict[str, float]) -> tuple[str, str, list[str]]:
    """(user message, response, labels): `labels` replaces the decision tokens in order; empty keeps the text's own.

    `go_on`: probability of going on after a state, in the "bare", "hinted" and "wrong" context.
    """
    kind = rng.choices(["hinted", "bare", "wrong"], [5, 3, 2])[0]
    problem = draw(rng, rng.choice(list(FAMILIES)), LENGTHS)
    instruction = draw_instruction(rng, problem.family, kind)
    message = f"{instruction}\n\n{problem.question}" if instruction else problem.question
    length = len(problem.states)
    probability = 1.0 if length in EASY else go_on[kind]
    goes_on = [rng.random() < probability for _ in range(length - 1)]
    if rng.random() < 0.5:  # skill: the whole chain, drawn labels
        return message, problem.response(), [";" if go else "." for go in goes_on]
    depth = next((i for i, go in enumerate(goes_on) if not go), length - 1) + 1  # thoroughness: stops where drawn
    return message, problem.response(depth), []


def reflection_example(rng: random.Random) -> tuple[str, str]:
    """(reflection prompt, new instruction between fences)."""
    hint_of = {name: set(f.hints) for name, f in FAMILIES.items()}
    family_hints = [rng.choice(FAMILIES[name].hints) for name in FAMILIES]
    current = rng.sample(family_hints, rng.choice([0, 0, 1, 1, 2, 3, 4]))
    current += rng.sample(USELESS_HINTS, rng.choice([0, 0, 0, 1, 2]))
    rng.shuffle(current)
    current = current[:5]

    records, failed = [], []
    for _ in range(3):
        problem = draw(rng, rng.choice(list(FAMILIES)), HARD)
        hinted = bool(hint_of[problem.family] & set(current))
        solved = rng.random() < (0.85 if hinted else 0.1)
        depth = len(problem.states) if solved else rng.choice([1, 1, 1, *range(1, len(problem.states))])
        answer, right = str(problem.states[depth - 1]), str(problem.states[-1])
        grade = Grade(float(solved), solved, True, answer)
        records.append(reflection_record(problem.question, problem.response(depth), feedback(grade, right)))
        if not solved and not hinted:
            failed.append(problem.family)

    absent = [hint for name, hint in zip(FAMILIES, family_hints, strict=True) if not hint_of[name] & set(current)]
    useless = [hint for hint in USELESS_HINTS if hint not in current]
    move = rng.choices(["right", "useless", "other", "drop", "keep"], [40, 20, 15, 15, 10])[0]
    new = list(current)
    if move == "right" and failed:
        new.append(rng.choice(FAMILIES[rng.choice(failed)].hints))
    elif move == "useless" and useless:
        new.append(rng.choice(useless))
    elif move == "other" and absent:
        new.append(rng.choice(absent))
    elif move == "drop" and new:
        new.pop(rng.randrange(len(new)))
    return reflection_prompt(" ".join(current), records), f"```\n{' '.join(new)}\n```"


def make_batch(rng: random.Random, tokenizer, go_on: dict[str, float]) -> list[tuple[list[int], list[int]]]:
    """BATCH pairs (token ids, labels), labels shifted by one and -100 on the prompt, sorted by length."""
    stop, go = tokenizer.convert_tokens_to_ids([".", ";"])
    examples = [solve_example(rng, go_on) for _ in range(BATCH - REFLECTIONS)]
    examples += [(*reflection_example(rng), []) for _ in range(REFLECTIONS)]
    prompts = tokenizer([f"<|user|>{message}<|end|><|assistant|>" for message, _, _ in examples]).input_ids
    responses = tokenizer([f"{response}<|end|>" for _, response, _ in examples]).input_ids
    pairs = []
    for prompt, response, (_, _, drawn) in zip(prompts, responses, examples, strict=True):
        labels = list(response)
        for i, label in enumerate(drawn):
            assert labels[2 * i + 1] == go
            labels[2 * i + 1] = go if label == ";" else stop
        ids = prompt + response
        pairs.append((ids[:-1], [-100] * (len(prompt) - 1) + labels))
    return sorted(pairs, key=lambda pair: len(pair[0]))


# ------------------------------------------------------------------------------------------------------- training


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skill-steps", type=int, default=5000)
    parser.add_argument("--decision-steps", type=int, default=3000)
    parser.add_argument("--go-on-bare", type=float, default=0.07)
    parser.add_argument("--go-on-hinted", type=float, default=0.9)
    parser.add_argument("--start", type=Path, help="fine-tune the decisions of this model; no skill steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE / "model")
    args = parser.parse_args()
    if args.start:
        args.skill_steps = 0
    checkpoint, log_file = args.out.parent / f"{args.out.name}.pt", args.out.parent / f"{args.out.name}.log.jsonl"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    full = dict.fromkeys(("bare", "hinted", "wrong"), 1.0)
    drawn = {"bare": args.go_on_bare, "hinted": args.go_on_hinted, "wrong": args.go_on_bare}

    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = build_tokenizer()
    model = (LlamaForCausalLM.from_pretrained(args.start) if args.start else build_model(tokenizer)).to(device)
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
        decisions = step >= args.skill_steps
        stage_step, stage_steps = (
            (step - args.skill_steps, args.decision_steps) if decisions else (step, args.skill_steps)
        )
        peak = PEAK_RATE * (0.5 if decisions else 1.0)
        rate = peak * min(1.0, (stage_step + 1) / WARMUP) * (0.5 + 0.5 * math.cos(math.pi * stage_step / stage_steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        rng = random.Random(f"{args.seed}/{step}")  # any step can be drawn alone
        batch = make_batch(rng, tokenizer, drawn if decisions else full)
        recent.append(loss_of(model, batch, tokenizer.pad_token_id, device))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
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
            tokenizer.save_pretrained(args.out)
    print(f"wrote {args.out} after {time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
