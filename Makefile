PYTHON ?= python3
BIN := .venv/bin
GPU ?= 0

.PHONY: demo test test-method test-all gpu lint docs clean

demo: .venv/installed  ## train VLPL on the embedded digits, in about a minute; GPU=cpu keeps off a GPU
	$(BIN)/python main.py -d digits -l EM_PL -g $(GPU)

test: .venv/installed  ## the suite, offline, on a CPU
	$(BIN)/python -m pytest -n auto

test-method: .venv/installed  ## the tests of one method:  make test-method NAME=focal
	$(BIN)/python -m pytest --method $(NAME) tests

test-all: .venv/installed  ## with what takes minutes
	$(BIN)/python -m pytest -n auto -m ''

gpu: .venv/installed  ## every test and figure that needs a GPU, in nine minutes, to results/gpu.md
	GPU=$(GPU) benchmarks/gpu_all.sh

lint: .venv/installed  ## style, and whether the pages that are made are current
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python docs/make_pages.py --check

docs: .venv/installed  ## write what is made of docs/methods.md and the README
	$(BIN)/python docs/make_pages.py

.venv/installed: requirements.txt requirements-dev.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11.4 or newer is needed, this is " + sys.version) if sys.version_info < (3, 11, 4) else 0'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:  ## remove the environment, not data or results
	rm -rf .venv
