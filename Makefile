# Every target sets up what it needs in .venv, or in the folder VENV; PYTHON chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -n auto --dist worksteal --max-worker-restart 0
.PHONY: demo test test-ci test-slow lint types docs clean

demo: $(VENV)/ready
	$(BIN)/ovenet prepare synthetic --train 120 --val 24 --test 4
	$(BIN)/ovenet audit --cfg experiments/synthetic/demo.yaml --pictures 0
	$(BIN)/ovenet sweep experiments/synthetic/sweeps/demo.yaml WORKERS 0 LOSS.CLASS_WEIGHTS output/synthetic/audit/audit.json
	$(BIN)/ovenet test $$(ls -td output/sweeps/demo/OVeNet-*/synthetic/demo | head -1) TEST.REPORT True TEST.SAVE_PREDICTIONS True
	$(BIN)/ovenet infer camvid-lite0 data/synthetic/leftImg8bit/test/drawnville --flip

test: $(VENV)/ready
	$(TEST)

test-ci: $(VENV)/ready
	$(TEST) -m ci

test-slow: $(VENV)/ready
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[test-slow]"
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/ready
	$(BIN)/mypy

docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

$(VENV)/docs: $(VENV)/ready
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[docs]"
	touch $@

$(VENV)/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[test]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps imagecorruptions-imaug
	touch $@

clean:
	rm -rf .venv build site lib/ovenet.egg-info
