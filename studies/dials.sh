#!/usr/bin/env bash
# Tiny models with the going-on probability turned, each by a fine-tune of 300 steps (about two minutes on one CPU core):
# bare-P for studies/bottom.toml, hinted-P for studies/top.toml. What is there already is left alone.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
for p in 0.15 0.25 0.35 0.5; do
    [ -f "runs/dials/bare-$p/done" ] || { "$python" tiny/train_base.py --start tiny/model --go-on-bare "$p" \
        --decision-steps 300 --out "runs/dials/bare-$p" && touch "runs/dials/bare-$p/done"; }
done
for p in 0.97 0.99 0.999; do
    [ -f "runs/dials/hinted-$p/done" ] || { "$python" tiny/train_base.py --start tiny/model --go-on-hinted "$p" \
        --decision-steps 300 --out "runs/dials/hinted-$p" && touch "runs/dials/hinted-$p/done"; }
done
