# make play        fill ./.venv with what playing needs (no torch) and open a world
# make test        add torch, the games and the test tools to ./.venv, run the fast tests
# make test-long   the tests that take minutes to hours
# make sanitize    the native engine under the address, undefined-behaviour and thread sanitizers
# make lint        ruff and mypy
# Needs Python 3.11 or 3.12 with venv. A C++ compiler is optional: without one ONNX Runtime plays.

VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
PLAY := $(VENV)/.stamp-play
TEST := $(VENV)/.stamp-test
HEADLESS := SDL_VIDEODRIVER=dummy SDL_AUDIODRIVER=dummy
# what an installation is made from; Python files are used in place and need none
SOURCES := pyproject.toml setup.py CMakeLists.txt $(wildcard csrc/*.cpp csrc/*/*.cpp csrc/*/*.cu csrc/*/*.h)

.PHONY: play test test-long sanitize lint clean
.DELETE_ON_ERROR:

play: $(PLAY)
	@$(BIN)/dreamloop play

test: $(TEST)
	$(HEADLESS) OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

test-long: $(TEST)
	$(HEADLESS) $(BIN)/pytest -m long

sanitize: $(TEST)
	$(BIN)/pytest -m long tests/csrc/test_sanitizers.py

lint: $(TEST)
	@mkdir -p build/types/dreamloop
	@for package in models runtime demos; do ln -sfn ../../../$$package build/types/dreamloop/$$package; done
	$(BIN)/ruff check .
	$(BIN)/mypy

$(BIN)/python:
	@for python in python3 python3.12 python3.11; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; then \
	    $$python -m venv $(VENV) && exit 0; \
	    echo "dreamloop: $$python cannot make a virtual environment; install its venv module" >&2; rm -rf $(VENV); exit 1; \
	  fi; \
	done; echo "dreamloop: needs Python 3.11 or 3.12 on the path" >&2; exit 1

$(PLAY): $(SOURCES) | $(BIN)/python
	@echo "installing what playing needs into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@$(BIN)/python -c 'from dreamloop.runtime import kernels; why = kernels.available(); print(f"dreamloop: ONNX Runtime plays: {why}" if why else f"dreamloop: compiled kernels: {kernels.instruction_tier()}")'
	@touch $@

$(TEST): $(PLAY)
	@echo "installing $(TORCH), the games and the test tools into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check '$(TORCH)' --editable '.[train,games,eval,hub,gpu,rtx,dev]'
	@touch $@

clean:
	rm -rf build dist *.egg-info runtime/_kernels*.so runtime/_cuda.*
