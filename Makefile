# One command for each habit; every one of them makes what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help install movielens serve test test-fast coverage sanitize lint benchmarks benchmarks-peers benchmarks-scale benchmarks-path docs figures examples dist clean

help:
	@echo "make serve             train on MovieLens-100K and serve recommendations with a page"
	@echo "make movielens         train and evaluate every model on MovieLens-100K"
	@echo "make test              run the tests"
	@echo "make test-fast         leave out the slow ones"
	@echo "make coverage          run the tests and show which lines of ncf/ none of them reaches"
	@echo "make sanitize          look for wrong memory accesses and races of the C kernels"
	@echo "make lint              check style and types"
	@echo "make benchmarks        measure speed"
	@echo "make benchmarks-scale  measure training with millions of rows"
	@echo "make benchmarks-path   100 million interactions from files to a saved model (long)"
	@echo "make benchmarks-peers  measure other libraries on the same work (long)"
	@echo "make gpu               test and measure on an NVIDIA GPU, and write gpu-report.md"
	@echo "make docs              build the documentation into docs/_build/html"
	@echo "make figures           draw the figures of the documentation anew"
	@echo "make examples          record anew what the pages of the examples show"
	@echo "make dist              build the sdist and a wheel into dist/, and check each in a fresh environment"
	@echo "make install           create $(VENV) with all that these need"
	@echo "make clean             remove what was built, but not $(VENV)"

# The stamp is as new as the files it was installed from.
$(VENV)/installed: requirements-cpu.txt requirements-dev.txt setup.py $(wildcard ncf/kernels/*.[ch])
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install -qq -r requirements-cpu.txt -r requirements-dev.txt
	@$(BIN)/python -m pip install -qq --no-deps torchrec==1.8.0 --config-settings editable_mode=compat -e .
	@touch $@

install: $(VENV)/installed

movielens: install
	@$(BIN)/python examples/movielens.py

serve: install
	@$(BIN)/python examples/serve.py

test: install
	@$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test-fast: install
	@$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m "not slow"

coverage: install
	@$(BIN)/python -m pytest --numprocesses 2 --dist worksteal --cov

# The tests run on a copy whose kernels are built with the sanitizer; all that is not is left out of the thread sanitizer.
SANITIZED := build/sanitized
SANITIZE := cc -g -O1 -fno-math-errno -Wno-psabi -fno-sanitize-recover=all -pthread
sanitize: install
	@for kind in thread address,undefined; do \
		rm -rf $(SANITIZED) && mkdir -p $(SANITIZED) && cp -r ncf tests conftest.py pyproject.toml README.md $(SANITIZED) && \
		$(SANITIZE) -fsanitize=$$kind -o $(SANITIZED)/program tests/kernels/sanitized.c -lm && $(SANITIZED)/program && \
		rm -f $(SANITIZED)/ncf/kernels/_native* && \
		$(SANITIZE) -fsanitize=$$kind -fPIC -shared -o $(SANITIZED)/ncf/kernels/_native.so ncf/kernels/native.c -lm && \
		case $$kind in thread) libraries=libtsan.so ;; *) libraries="libasan.so libubsan.so" ;; esac && \
		(cd $(SANITIZED) && \
			CFLAGS="-g -fsanitize=$$kind -fno-sanitize-recover=all" PYTHONPATH=$$PWD OMP_NUM_THREADS=1 \
			ASAN_OPTIONS=detect_leaks=0 TSAN_OPTIONS=ignore_noninstrumented_modules=1 \
			LD_PRELOAD="$$(for name in $$libraries; do cc -print-file-name=$$name; done | xargs)" \
			$(CURDIR)/$(BIN)/python -m pytest --capture=sys -p no:cacheprovider \
				tests/kernels/test_native.py tests/kernels/test_native_ranks.py tests/training/test_native_step.py \
				tests/training/test_batches.py tests/data/test_sampling.py tests/data/test_candidates.py) || exit 1; \
	done

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

benchmarks: install
	@$(BIN)/python -m pytest benchmarks

benchmarks-scale: install
	@$(BIN)/python -m benchmarks.scale

benchmarks-path: install
	@$(BIN)/python -m benchmarks.path

benchmarks-peers: install
	@$(BIN)/python -m benchmarks.peers

# PyTorch, TorchRec and FBGEMM for CUDA come from the default index, into an environment of their own.
gpu:
	@if ! command -v nvidia-smi >/dev/null 2>&1; then \
		echo "There is no NVIDIA GPU here: nothing was measured."; \
	else \
		{ test -x .venv-gpu/bin/python || $(PYTHON) -m venv .venv-gpu; } && \
		.venv-gpu/bin/python -m pip install -qq -r requirements-dev.txt -e . && \
		.venv-gpu/bin/python -m benchmarks.gpu; \
	fi

docs: install
	@$(BIN)/python -m sphinx -W --keep-going -E -q -b html docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

figures: install
	@$(BIN)/python docs/figures.py

examples: install
	@$(BIN)/python examples/own_data.py > docs/examples/output/own_data.txt
	@$(BIN)/python examples/movielens.py > docs/examples/output/movielens.txt
	@$(BIN)/python examples/paper.py --factors 8 > docs/examples/output/paper.txt
	@$(BIN)/python examples/new_users.py > docs/examples/output/new_users.txt
	@$(BIN)/python examples/features.py --epochs 10 > docs/examples/output/features.txt
	@$(BIN)/python examples/weekly.py > docs/examples/output/weekly.txt
	@$(BIN)/python examples/streaming_ids.py > docs/examples/output/streaming_ids.txt

dist: install
	@rm -rf dist
	@$(BIN)/python -m build --outdir dist .
	@.ci/check_dist dist/*.whl dist/*.tar.gz

clean:
	rm -rf build dist *.egg-info ncf/kernels/_native*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .coverage .coverage.* docs/_build
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
