"""What an epoch's numbers say about a run that looks alive and learns nothing."""

from __future__ import annotations

MAX_BAD_UPDATES = 3  # in a row, without a finite gradient
MAX_SMALL_CONTRAST = 0.1  # of the groups, in which rewards differ, but by less than 0.5
MAX_MISMATCH = 0.1  # nats, mean over tokens: in bf16 a single token may differ by more than 1, the mean hardly by 0.02


def silent_failures(line: dict, cfg) -> list[str]:
    """A sentence for each symptom in an epoch's line, with the likely cause. cfg: p2o.Config."""
    warnings = []
    if line["truncated"] == 1:
        warnings.append(
            "every response was cut off: raise --max-response-tokens, or the model's end token is not known"
        )
    elif line["ill_formed"] == 1:
        warnings.append(
            "no response has exactly one boxed answer: does the prompt ask for \\boxed{} (--question-suffix), and is "
            "it an instruct model with its own chat template?"
        )
    elif line["reward"] == 0:
        warnings.append(
            "every reward is 0: is the reference answer in the form of the responses? See transcripts.jsonl"
        )
    if line["zero_advantage"] == 1 and not (cfg.method == "p2o" and line["hard_set"] >= cfg.hard_set_min):
        cause = "all solved: harder questions are needed" if line["reward"] > 0.9 else "advantage collapse"
        warnings.append(
            f"every group has zero advantage ({cause}) and no templates will be evolved: nothing is learned"
        )
    if line["small_contrast"] > MAX_SMALL_CONTRAST and cfg.scale_by_std and not cfg.advantage:
        warnings.append(
            f"the rewards of {line['small_contrast']:.0%} of the groups differ by less than 0.5, and dividing by their "
            "standard deviation makes that as much as right against wrong: --no-scale-by-std, or rewards of 0 and 1"
        )
    if line["logprob_mismatch"] > MAX_MISMATCH:
        warnings.append(
            f"sampled and trained log-probs differ by {line['logprob_mismatch']:.2f} on average: a stale adapter in "
            "the sampler, or another temperature, top-k or top-p than the trainer's"
        )
    return warnings
