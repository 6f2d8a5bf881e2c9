# `make` lists the commands. They make .venv when its stamp is missing or older than the requirements, never otherwise.

PYTHON ?= python3
VENV ?=
ARGS ?=
GPUS ?=
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PY := '$(or $(VENV),.venv)/bin/python'
TO_RUN := $(if $(VENV),given-environment,.venv/requirements.stamp)
TO_EXPORT := $(if $(VENV),given-environment,.venv/requirements-export.stamp)
TO_TEST := $(if $(VENV),given-environment,.venv/requirements-dev.stamp)

# Of pip's output one line a large download remains; its errors go to stderr as they are.
PIP := PYTHONUNBUFFERED=1 .venv/bin/python -m pip install --disable-pip-version-check
SHORT := sed -u -n -E -e 's/^ *(Downloading|Using cached) ([^-]+-[^-]+)-.* \(([0-9.]+ [MG]B)\)/  \3  \2/p' \
	-e 's/^Installing .*/  unpacking/p'
# Two makes at once: the second waits, then finds the stamp of the first. Without flock they do not wait.
FRESH_UNDER_LOCK = exec 9<$<; flock 9 2>/dev/null || true; if [ $@ -nt $< ]; then exit 0; fi

.PHONY: help train gallery predict audit export bench profile gpu-check test test-all crash-test planted fuzz check clean given-environment

help:  ## this list
	@echo 'make TARGET [ARGS="flags passed on"] [PYTHON=python3.12] [VENV=an environment to use as it is]'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 14

# With GPUS=4, four processes, one for each GPU.
LAUNCH = $(if $(GPUS),-m torch.distributed.run --standalone --nproc-per-node=$(GPUS))

train: $(TO_RUN)  ## train ResNet-18 on CIFAR-10 and write model.pt: make train GPUS=4 ARGS="full --epochs 10"
	@$(PY) $(LAUNCH) train.py $(ARGS)

gallery: $(TO_RUN)  ## draw what model.pt gets wrong into gallery.png: make gallery ARGS="--n 20"
	@$(PY) gradcam.py --ckpt model.pt --out gallery.png $(ARGS)

predict: $(TO_RUN)  ## what model.pt says of pictures, and how good that is: make predict ARGS="holiday --promise 0.99"
	@$(PY) predict.py --ckpt model.pt $(ARGS)

audit: $(TO_RUN)  ## find training images whose label looks wrong: make audit ARGS="--data holiday"
	@$(PY) audit.py $(ARGS)

export: $(TO_EXPORT)  ## write model.pt as one file that runs without this folder: make export ARGS="--int8"
	@$(PY) export.py $(ARGS)

bench: $(TO_RUN)  ## where every image per second goes: make bench ARGS="--only data,ladder --quick"
	@$(PY) -m bench $(ARGS)

profile: $(TO_RUN)  ## a trace of real training steps for TensorBoard, and what it adds up to
	@$(PY) -m bench profile $(ARGS)

gpu-check: $(TO_TEST)  ## on a machine with a CUDA GPU: tests, a full run, bench and profile, in one folder
	@PYTHON=$(PY) bash bench/gpu_check.sh $(ARGS)

# Each test takes one thread. More processes would each take another gigabyte.
test: $(TO_TEST)  ## the tests, without those marked slow, in two processes
	@$(PY) -m pytest -n 2 --dist worksteal $(ARGS)

test-all: $(TO_TEST)  ## all tests, the slow ones too
	@$(PY) -m pytest -m "" -n 2 --dist worksteal $(ARGS)

crash-test: $(TO_TEST)  ## kill 30 small trainings at random moments, resume them, compare: 3 minutes
	@$(PY) tests/crash.py $(ARGS)

planted: $(TO_TEST)  ## plant known defects and see that the tests notice each: 10 seconds a defect
	@$(PY) tests/planted.py $(ARGS)

fuzz: $(TO_TEST)  ## forged and damaged files of all kinds: 12 minutes with ARGS="--inputs 5000"
	@$(PY) tests/fuzz.py $(ARGS)

check: $(TO_TEST)  ## lint, types and tests
	@$(PY) -m ruff check .
	@$(PY) -m mypy $(wildcard *.py ground engine pipeline run explain judge bench deploy examples tests)
	@$(PY) -m pytest -n 2 --dist worksteal $(ARGS)

clean:  ## remove .venv and the tools' caches; results (runs, model.pt, gallery.png) and the data set stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/requirements.stamp: requirements.txt
	@$(FRESH_UNDER_LOCK); \
	$(PYTHON) preflight.py setup --venv .venv; \
	echo "Setting up .venv, once: 3 GB to download, 6.4 GB on disk, two to three minutes on a fast connection"; \
	$(PYTHON) -m venv .venv; $(PIP) -r $< | $(SHORT); touch $@

.venv/requirements-dev.stamp: | .venv/requirements-export.stamp

.venv/requirements-%.stamp: requirements-%.txt | .venv/requirements.stamp
	@$(FRESH_UNDER_LOCK); \
	echo "Adding what $< lists to .venv"; $(PIP) -r $< -c requirements.txt | $(SHORT); touch $@

given-environment:
	@[ -x $(PY) ] || { echo "VENV=$(VENV) is not an environment: there is no $(PY)" >&2; exit 2; }
