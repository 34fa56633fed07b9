#!/usr/bin/env bash
# Tiny models with a dial turned, each by a fine-tune of 300 steps (about two minutes on one CPU core): bare-P for
# phase.toml and bound.toml, hinted-P for phase.toml; of the divided world, locked (no hint helps the clock) and accented (hints work only in responses that open with a word that the bare model never writes); and
# range, the divided world with bare success rates from about 0.9 to 0.01 on the questions that go to runs/range. What is
# there already is left alone.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
turn() {
    [ -f "runs/dials/$1/done" ] || { "$python" tiny/train_base.py --start tiny/united/model --decision-steps 300 \
        --out "runs/dials/$1" "${@:2}" && touch "runs/dials/$1/done"; }
}
for p in 0.15 0.25 0.35 0.5; do turn "bare-$p" --go-on-bare "$p"; done
for p in 0.03 0.01 0.003; do turn "bare-$p" --go-on-bare "$p"; done
for p in 0.97 0.99 0.999; do turn "hinted-$p" --go-on-hinted "$p"; done
turn locked --world divided --start tiny/divided/model --locked clock
turn accented --world divided --start tiny/divided/model --accent-needed
turn range --world divided --start tiny/divided/model --go-on-bare 0.5
"$python" tiny/problems.py --range runs/range
