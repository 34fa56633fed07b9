from __future__ import annotations

from gepa.strategies.instruction_proposal import InstructionProposalSignature

REFLECTION_PROMPT = """\
An assistant was given this instruction:
```
<curr_param>
```
These are questions, its responses and feedback:
<side_info>
Write a better instruction for such questions. Keep what works. Add what the feedback shows to be missing: \
facts about the task and the steps of a strategy that generalizes, not the answers. \
Put the new instruction between ``` marks."""


def reflection_prompt(instruction: str, records: list[dict[str, str]]) -> str:
    return InstructionProposalSignature.prompt_renderer(
        {
            "current_instruction_doc": instruction,
            "dataset_with_feedback": records,
            "prompt_template": REFLECTION_PROMPT,
        }
    )


def reflection_record(question: str, response: str, feedback: str) -> dict[str, str]:
    return {"Question": question, "Response": response, "Feedback": feedback}
