# Two commands are enough: `make demo` runs the main job, `make test` passes every check.
# Both create .venv from pinned constraints first.
#   PYTHON       the interpreter to build .venv with (3.11 or newer)
#   TORCH_INDEX  an extra wheel index, e.g. PyTorch's CPU index on a machine without a GPU (saves gigabytes)

PYTHON ?= python3
RUN := .venv/bin

.PHONY: demo test check setup bench clean

demo: setup
	$(RUN)/epara demo

test: setup
	scripts/check

check: test

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt scripts/setup
	PYTHON="$(PYTHON)" TORCH_INDEX="$(TORCH_INDEX)" scripts/setup

bench: setup
	$(RUN)/python benchmarks/planner/run.py

clean:
	rm -rf .venv build dist
