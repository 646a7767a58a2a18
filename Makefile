# Two commands on a fresh machine: `make demo` and `make test`. Each does the set-up it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

ARCHITECTURES := $(VENV)/.architectures
BROWSER := $(VENV)/.browser
INTEGRATIONS := $(VENV)/.integrations
DOCS := $(VENV)/.docs

.PHONY: setup demo test lint bench bench-causes bench-deadbench bench-zoo pages docs clean
.PHONY: check-lowest check-size check-wheel native-sanitize

setup: $(READY)

$(READY): pyproject.toml setup.py constraints.txt $(wildcard reludiag/native/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $(READY)

demo: $(READY)
	rm -rf demo && mkdir demo
	$(BIN)/python sample_models/digits.py --lr 0.1 --checkpoint demo/digits.pt --recording demo/run.reludiag
	$(BIN)/python sample_models/digits.py --lr 0.001 --recording demo/slow.reludiag
	$(BIN)/reludiag scan sample_models/digits.py:build demo/digits.pt \
	    --data sample_models/digits.py:batches --csv demo/dead.csv
	$(BIN)/reludiag report demo/run.reludiag --html demo/report.html --json --output demo/report.json
	$(BIN)/reludiag report demo/run.reludiag

# Other people's networks to check with, where they can be had.
$(ARCHITECTURES): $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[architectures]" || \
	    echo "torchvision, timm and transformers cannot be had: their tests are skipped"
	touch $(ARCHITECTURES)

# A browser to look at the HTML report with. CI fetches Debian's; elsewhere it is yours to install.
$(BROWSER): $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[browser]" || \
	    echo "Playwright cannot be had: the tests in a browser are skipped"
	test -z "$$CI" || command -v chromium > /dev/null || \
	    { apt-get update -qq && apt-get install -y -qq chromium; } > /dev/null 2>&1 || \
	    echo "Chromium cannot be had: the tests in a browser are skipped"
	touch $(BROWSER)

# Frameworks and loggers; where one cannot be had, the others one by one.
EXTRAS := parquet,lightning,transformers,ignite,tensorboard,wandb,mlflow
comma := ,
$(INTEGRATIONS): $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[$(EXTRAS)]" || \
	for extra in $(subst $(comma), ,$(EXTRAS)); do \
	    $(BIN)/python -m pip install --quiet -c constraints.txt -e ".[$$extra]" || \
	        echo "$$extra cannot be had: its tests are skipped"; \
	done
	touch $(INTEGRATIONS)

# What builds the documentation.
$(DOCS): $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]" || \
	    echo "mkdocs-material cannot be had: the documentation is not built"
	touch $(DOCS)

test: $(READY) $(ARCHITECTURES) $(BROWSER) $(INTEGRATIONS) $(DOCS)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/evidence.py
	$(BIN)/python benchmarks/kernels.py
	$(BIN)/python benchmarks/scan.py
	$(BIN)/python benchmarks/startup.py

# On a machine with a GPU, at most 5 minutes: its tests, and what a Monitor costs there.
bench-gpu: $(READY)
	$(BIN)/python benchmarks/gpu.py

# Of many trainings: half an hour.
bench-causes: $(READY)
	$(BIN)/python benchmarks/causes.py

# Of trainings whose cause is proved in the run: what is said of it, and what the advice does. A part
# in some minutes: `python -m benchmarks.deadbench --part 1/4`.
bench-deadbench: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.deadbench --replay --write

# What an oracle sees in the models of many libraries, in an environment of its own. A library that
# cannot be had is a row that says so. None may bring another torch.
ZOO := .venv-zoo
ZOO_EXTRAS := architectures,lightning,samples,transformers,wandb
bench-zoo:
	$(PYTHON) -m venv $(ZOO)
	$(ZOO)/bin/python -m pip install --quiet -c constraints.txt -e ".[$(ZOO_EXTRAS)]" plotly
	grep -v '^#' benchmarks/zoo-requirements.txt | while read -r library; do \
	    $(ZOO)/bin/python -m pip install --quiet --no-deps "$$library" || \
	        echo "$$library cannot be had: its models are not looked at"; \
	done
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(ZOO)/bin/python -m benchmarks.zoo --write

# The outputs, generated pages and pictures of the README and of docs/, from runs of all they show.
pages: $(READY) $(BROWSER)
	$(BIN)/python -m docs.generate

# The documentation as a site of static pages, in site/.
docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The fast tests, with the lowest versions that pyproject.toml declares, in an environment of its own.
# torch is that of constraints.txt: `make check-lowest TORCH=2.10.0` fetches gigabytes.
LOWEST := .venv-lowest
check-lowest:
	$(PYTHON) -m venv --clear $(LOWEST)
	$(PYTHON) .ci/lowest_versions.py $(TORCH:%=--torch %) dev parquet > $(LOWEST)/pins.txt
	$(LOWEST)/bin/python -m pip install --quiet $(if $(TORCH),,-c constraints.txt) -r $(LOWEST)/pins.txt
	$(LOWEST)/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
	$(LOWEST)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
	    -m "not slow and not architectures and not browser and not integrations"

# What an installation adds to PyTorch.
check-size:
	rm -f dist/reludiag-*.whl
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir dist .
	$(PYTHON) .ci/install_size.py dist/reludiag-*.whl --most-packages 22 --most-megabytes 410

# The wheel, in a clean environment of each Python >= 3.11 that this machine has. Where the package
# index has no torch for CPUs alone, each takes gigabytes for a while.
check-wheel: $(READY)
	$(BIN)/python -m tests.wheel

# The compiled part with the address and undefined behaviour sanitizers, under its own tests.
native-sanitize: $(READY)
	$(BIN)/python -m tests.sanitized

clean:
	rm -rf $(VENV) $(LOWEST) $(ZOO) demo site build dist *.egg-info
