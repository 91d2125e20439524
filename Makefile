# Every target sets up what it needs in .venv; PYTHON chooses the interpreter.
PYTHON ?= python3
BIN := .venv/bin
DEMO := experiments/synthetic/demo_ovenet.yaml

.PHONY: demo test test-slow lint clean

demo: .venv/ready
	$(BIN)/python tools/prepare_data.py synthetic --train 80 --val 16 --test 4
	$(BIN)/python tools/train.py --cfg $(DEMO) TRAIN.RESUME True
	$(BIN)/python tools/test.py --cfg $(DEMO) TEST.SCALE_LIST 0.75,1.0,1.25 TEST.FLIP_TEST True TEST.SAVE_PREDICTIONS True

test: .venv/ready
	$(BIN)/python -m pytest -n auto --dist loadfile

test-slow: .venv/ready
	$(BIN)/python -m pytest -m slow

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[test]"
	touch $@

clean:
	rm -rf .venv build lib/ovenet.egg-info
