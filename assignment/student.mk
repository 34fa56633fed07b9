# make grade works as the first command typed in here.
PYTHON ?= python3
PY = .venv/bin/python

.PHONY: grade run final

grade: .venv/installed  ## points and hints, and submission.zip; PART=2 for one part in detail
	$(PY) grader/grade.py . $(if $(PART),--part $(PART))

run: .venv/installed  ## P2O on the tiny model, with your code
	$(PY) p2o.py

final: .venv/installed  ## the final task: your line against the baseline's (half an hour)
	$(PY) grader/final.py

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "installing into .venv (a few minutes the first time)"
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@
