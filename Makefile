# make setup | test | test-short | test-plan | parity | lint | plan-all | plan-scale | quickstart | clean
#
# Every target sets up what it needs in .venv first; nothing has to be activated. The set-up runs again when
# requirements.txt, pyproject.toml or the named Python change.
#
#   make test PYTHON=python3.11                    rebuilds .venv with that Python, and later calls keep it
#   make test PYTHON=python3.11 VENV=.venv-3.11    leaves .venv alone
#   make test JOBS=1                               one test process; left out, one more than cores (some tests wait), at most 8
#   make test PIP_FLAGS="--no-index --find-links wheels"
#   make test PYTEST_FLAGS="-x tests/test_cli.py"
#   make plan-all PLAN_FLAGS="--only train"

VENV ?= .venv
PIP_FLAGS ?=
PYTEST_FLAGS ?=
PLAN_FLAGS ?=
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1); echo $$((n > 7 ? 8 : n + 1)))

# Without PYTHON, an environment that is there already keeps its Python; a new one gets 3.12 where that is to be had,
# else whatever python3 is.
ifeq ($(origin PYTHON), undefined)
PYTHON := $(shell \
  if $(VENV)/bin/python -c 0 2>/dev/null; then echo $(VENV)/bin/python; \
  else found=$$(.ci/python 3.12); echo $${found:-python3}; fi)
endif

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --compile $(PIP_FLAGS)

.PHONY: setup test test-short test-plan parity lint plan-all plan-scale quickstart clean FORCE
.DELETE_ON_ERROR:

setup: $(VENV)/.setup

# Rewritten, and so newer than what depends on it, only when the Python differs from the one the environment has.
$(VENV)/.python: FORCE
	@version=$$($(PYTHON) -c 'import sys; print(sys.version.split()[0])') || exit 1; \
	if [ "$$(cat $@ 2>/dev/null)" != "$$version" ]; then \
	  echo "Making $(VENV) with Python $$version"; \
	  rm -rf $(VENV) && $(PYTHON) -m venv $(VENV) && echo "$$version" > $@; \
	fi

$(VENV)/.setup: $(VENV)/.python requirements.txt pyproject.toml
	$(PIP) --editable '.[dev]'
	$(BIN)/python -m compileall -q $(wildcard models easylm_jax recipes)
	@touch $@

$(VENV)/.parity: $(VENV)/.setup
	$(PIP) --editable '.[dev,parity]'
	@touch $@

# Tests of one file stay in one process, which shares what they compile.
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test: $(VENV)/.setup
	$(PYTEST) $(PYTEST_FLAGS)

# Some minutes: models, objectives, the optimiser, data, decoding, checkpoints, one resumed run. For a second Python.
SHORT := imports cli fields presets model_attention model_decoder model_heads hf objectives objectives_estimators \
  objectives_preference schedules data_cache data_packing data_templates decode_sampling expression rewards \
  checkpoint_tools resume
parity: export JAX_DISABLE_MOST_OPTIMIZATIONS = 0
test-short: $(VENV)/.setup
	$(PYTEST) $(PYTEST_FLAGS) $(SHORT:%=tests/test_%.py)

parity: $(VENV)/.parity
	$(PYTEST) -m parity $(PYTEST_FLAGS)

lint: $(VENV)/.setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.plan: $(VENV)/.setup
	$(PIP) --editable '.[dev,plan]'
	@touch $@

# Where the TPU's compiler cannot be had, these tests are left out, and it is said why. docs/pods.md is compared with the
# recipes too.
PAGE_TEST := tests/test_plan_pods.py::test_the_page_of_all_recipes_is_of_the_recipes_as_they_are
test-plan: $(VENV)/.setup
	@if $(MAKE) --no-print-directory $(VENV)/.plan; \
	then $(BIN)/python -m pytest tests/test_plan_compiled.py $(PAGE_TEST); \
	else echo "Skipped: the TPU's compiler (libtpu) cannot be installed here; pip says why above"; fi

# Every recipe of a paper's size on its pod, into docs/pods.md: about two hours on two cores, seconds once nothing has
# changed.
plan-all: $(VENV)/.plan
	nice $(BIN)/python -m recipes.pods $(PLAN_FLAGS)

# Two stages from 8 to 4,096 chips, into docs/scale.md: an hour on two cores.
SWEEP := nice $(BIN)/easylm plan --write docs/scale.md --sweep chips=8..4096x8
plan-scale: $(VENV)/.plan
	$(SWEEP) recipes/olmo2/sft_7b.py --stage sft --scaling weak
	$(SWEEP) recipes/olmo2/sft_7b.py --stage sft --scaling strong
	$(SWEEP) recipes/olmo2/rlvr_7b.py --stage ppo --scaling weak
	$(SWEEP) recipes/olmo2/rlvr_7b.py --stage ppo --scaling strong

quickstart: $(VENV)/.setup
	$(BIN)/easylm run recipes/quickstart.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
