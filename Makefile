TASK ?= segmentation
STACK ?= onedl
TORCH ?=
VENV ?= .venv
PYTHON ?= $(shell python3.11 -c 'print("python3.11")' 2>/dev/null || echo python3)

LIBS_segmentation = mmseg
LIBS_detection = mmdet
OPS_segmentation = cached
OPS_detection = required

# A user's own runs, beside those in the repository; --quick has a file of its own.
OWN = $(if $(findstring --quick,$(OPTIONS)),,--results work_dirs/reproduce/runs.jsonl)

ON_GPU = --device cuda --out work_dirs/gpu --overwrite

SETUP = $(PYTHON) tools/setup_env --venv '$(VENV)' --torch '$(TORCH)' --stack '$(STACK)'

.DEFAULT_GOAL := help
.PHONY: help demo reproduce zoo install test docs families losses fuzz attacks test-faults stacks gpu wheel \
  lint clean python
.NOTPARALLEL:

help:  ## This text
	@echo 'make TARGET [VARIABLE=value ...]'
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 12
	@echo
	@echo '  TASK=segmentation  or detection: what the demo shows'
	@echo '  PYTHON=python3.11  makes the environment (3.10 to 3.13)'
	@echo '  VENV=.venv         where the environment is; one that exists is added to, not changed'
	@echo '  TORCH="torch==..." what to install, with options of pip if need be'
	@echo '  STACK=onedl        or upstream: whose mmengine, mmcv, mmdet and mmseg'
	@echo '  OPTIONS="--quick"  of tools/reproduce.py for reproduce, of tools/zoo_sweep.py for zoo'
	@echo '  MMKD_CACHE=DIR     keeps compiled ops (default: ~/.cache/mmkd)'

demo: python  ## Environment, data, teacher, student, distilled student, report
	@$(if $(LIBS_$(TASK)),,echo "TASK=$(TASK) is neither segmentation nor detection" >&2; exit 2)
	@$(SETUP) --libs $(LIBS_$(TASK)) --ops $(OPS_$(TASK)) --extras demo
	@'$(VENV)/bin/python' -u tools/demo.py --task $(TASK)

reproduce: python  ## Each recipe against its student alone, with intervals; OPTIONS="--quick"
	@$(SETUP) --libs mmseg mmdet --ops required --extras demo reproduce
	@'$(VENV)/bin/python' -u tools/reproduce.py $(OWN) $(OPTIONS)

zoo: python  ## Every config of both libraries as a small student, for a step each
	@$(SETUP) --libs mmseg mmdet --ops required
	@'$(VENV)/bin/python' -u tools/zoo_sweep.py $(OPTIONS)

install: python  ## Environment for development: both libraries, compiled ops, test tools
	@$(SETUP) --libs mmseg mmdet --ops required --extras demo docs test

test: install lint  ## Environment, style, tests; PYTEST="-k name" narrows them
	OMP_NUM_THREADS=1 '$(VENV)/bin/python' -m pytest -n 2 --dist worksteal $(PYTEST)

docs:  ## The pages as a site in build/site, with the notebooks run; -W: any warning is an error
	PYTHONPATH='$(CURDIR)' '$(VENV)/bin/python' -m sphinx -q -W --keep-going -D nb_execution_mode=force -c docs . build/site
	@echo 'build/site/docs/index.html'

families:  ## The largest recipes built whole, and more models compiled and stepped
	FAMILIES=all OMP_NUM_THREADS=1 '$(VENV)/bin/python' -u -m pytest -v \
	  tests/test_runner.py tests/test_configs.py tests/migrating/test_mmrazor.py \
	  -k 'takes_a_step or builds or narrow_models or compiled_runner'

losses:  ## Each loss in all its variants traced for torch.compile
	LOSSES=all OMP_NUM_THREADS=1 '$(VENV)/bin/python' -m pytest -q tests/losses -k one_graph

fuzz:  ## 2,000 configs with one wrong leaf; FUZZ=N FUZZ_SEED=N for others
	FUZZ=$(or $(FUZZ),2000) OMP_NUM_THREADS=1 '$(VENV)/bin/python' -m pytest -q tests/fuzz

attacks:  ## Mistakes in configs, changed checkpoints and hostile files: all, each typed in
	ATTACKS_EVERY=1 OMP_NUM_THREADS=1 '$(VENV)/bin/python' -m pytest -q tests/attacks

test-faults:  ## Every program killed at every file operation, and the 2,000 configs of fuzz
	FAULTS=all FUZZ=2000 OMP_NUM_THREADS=1 '$(VENV)/bin/python' -m pytest -q tests/faults tests/fuzz

# mim asks for packages that pin others of the environment, so it has a folder of its own.
wheel:  ## Builds the wheel, and runs mmkd demo --quick and mim train from it in an environment of its own
	'$(VENV)/bin/python' -m pip install -q --no-deps --upgrade --target build/mim-packages \
	  openmim model-index ordered-set tabulate colorama pandas
	WHEEL=all PYTHONPATH='$(CURDIR)/build/mim-packages' \
	  '$(VENV)/bin/python' -m pytest -q -s tests/test_package.py -k wheel

stacks:  ## Tests of the environment in VENV, and a row for it in docs/versions.md
	'$(VENV)/bin/python' tools/stacks.py $(OPTIONS)

gpu:  ## What needs a GPU: its tests, then tables of the benchmarks; 8 minutes
	mkdir -p work_dirs/gpu
	-timeout 240 '$(VENV)/bin/python' -m pytest -q -rA -p no:cacheprovider tests/gpu \
	  --junitxml work_dirs/gpu/tests.xml
	-timeout 100 '$(VENV)/bin/python' -m benchmarks step $(ON_GPU) --seconds 15
	-timeout 50 '$(VENV)/bin/python' -m benchmarks memory pspnet $(ON_GPU) --no-compile
	-timeout 90 '$(VENV)/bin/python' -m benchmarks losses $(ON_GPU) --seconds 0.3 --no-compile

lint:  ## Style only, in an environment that exists
	'$(VENV)/bin/python' -m ruff check .
	'$(VENV)/bin/python' -m ruff format --check .

clean:  ## Remove what the demo wrote and the tools' caches; keeps the environment and the ops
	rm -rf work_dirs/demo build dist .pytest_cache .ruff_cache .hypothesis

python:
	@command -v '$(PYTHON)' >/dev/null || { \
	  echo "'$(PYTHON)' is not installed: give a Python 3.10 to 3.13 with PYTHON=..." >&2; exit 1; }
