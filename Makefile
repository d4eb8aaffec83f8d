# Everything a developer or a newcomer runs.  Each target sets up what it needs first (.ci/setup, quick when nothing changed).

.DEFAULT_GOAL := help
PYTHON := .venv/bin/python
ROOMS := cache nbdkit_plugin balloon host
SOURCES := src/swaptide tests bench dashboards stubs $(wildcard vm-images/*.py)

# The rooms are importable as swaptide.* only: a bare `import cache` has to fail.
export PYTHONSAFEPATH := 1

# What the two parts of `make test` have to run and pass at least, so that skipping cannot look like success.  Raise
# them with the tests.
MIN_TESTS := 690
MIN_UNIT_TESTS := 2140
# The same for `make cluster-test`.
MIN_CLUSTER_TESTS := 9
# The same for `make package-test`.
MIN_PACKAGE_TESTS := 8
# The same for `make vm-test`.  One scenario may be skipped: the BIOS guest under /dev/kvm, where that boots none.
MIN_VM_TESTS := 36
# More arguments for pytest: make test ARGS="-k layout -x"  (the minimum does not hold then).
ARGS :=
# How guests run: make vm-test ACCEL=kvm|tcg; otherwise found out by booting one.
ifdef ACCEL
export ACCEL
endif

PYTEST := $(PYTHON) -m pytest

.PHONY: help
help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: setup
setup: ## install what is missing (Debian packages, .venv), compile the core, build the guest image
	@.ci/setup

.PHONY: run
run: setup ## watch a guest swap while its cache is squeezed and opened again (ACCEL=kvm|tcg)
	@$(PYTHON) tests/vm/run.py

SHORT := not long and not cluster and not package
UNIT_LOG := .cache/unit-tests.log
# Beside the others: what looks at no more of the machine than its own processes.
ASIDE := tests/unit tests/hygiene $(addsuffix .py,$(addprefix tests/real/test_,kill_points manners migrate \
	migrate_store migrate_store_faults model pair remote))

.PHONY: test
test: ## unit, hygiene and real tests, and a short guest (ARGS="-k ...")
	@.ci/setup test
ifneq ($(ARGS),)
	@$(PYTEST) -m "$(SHORT)" --session-timeout=5400 $(ARGS)
else
	@# Side by side: real tests wait for processes most of the time.  The others are shown when they are over.
	@SWAPTIDE_MIN_TESTS=$(MIN_UNIT_TESTS) nice -n 5 $(PYTEST) $(ASIDE) -m "$(SHORT)" \
		--session-timeout=3600 >$(UNIT_LOG) 2>&1 & unit=$$!; \
	SWAPTIDE_MIN_TESTS=$(MIN_TESTS) $(PYTEST) $(addprefix --ignore=,$(ASIDE)) -m "$(SHORT)" \
		--session-timeout=5400; real=$$?; \
	wait $$unit; unit=$$?; cat $(UNIT_LOG); test $$real = 0 -a $$unit = 0
endif

.PHONY: setup-tests
setup-tests: # all that `make test` and `make cluster-test` need
	@.ci/setup test
	@.ci/setup cluster

.PHONY: cluster-test
cluster-test: ## a disk whose spill is on a real Ceph cluster, made here for it, under five minutes (installs Ceph)
	@.ci/setup cluster
	@SWAPTIDE_MIN_TESTS=$(if $(ARGS),0,$(MIN_CLUSTER_TESTS)) $(PYTEST) tests/cluster --session-timeout=900 $(ARGS)

# For which releases: make deb RELEASES=trixie
RELEASES :=

.PHONY: deb
deb: ## the Debian packages, in dist/, each built in a clean release (RELEASES="bookworm trixie")
	@.ci/setup package
	@$(PYTHON) tests/package/build.py $(RELEASES)

.PHONY: package-test
package-test: ## packages, wheel and source distribution on a clean Debian 12 and 13, in chroots (ARGS="-k bookworm")
	@.ci/setup package
	@SWAPTIDE_MIN_TESTS=$(if $(ARGS),0,$(MIN_PACKAGE_TESTS)) $(PYTEST) tests/package $(ARGS)

.PHONY: vm-test
vm-test: ## every guest scenario, an hour where guests are emulated (ACCEL=kvm|tcg)
	@.ci/setup guests
	@SWAPTIDE_MIN_TESTS=$(if $(ARGS),0,$(MIN_VM_TESTS)) $(PYTEST) tests/vm $(ARGS)

.PHONY: test-long
test-long: setup ## the tests that take minutes, without guests
	@$(PYTEST) -m "long and not guest and not package" $(ARGS)

.PHONY: race
race: setup ## the race and model tests on a build whose threads dawdle at the dangerous places
	@SWAPTIDE_POINTS=1 $(PYTHON) setup.py -q build --build-temp build/points-objects --build-lib build/points
	@PYTHONPATH=build/points $(PYTEST) tests/unit/test_cache_race.py tests/real/test_model.py $(ARGS)

# The core as one process holds it.  nbdkit itself does not start under either sanitizer: Python waits for
# ever for glibc's setlocale lock there.
SANITIZED := tests/unit/test_cache_race.py tests/unit/test_cache_small.py tests/unit/test_cache_pack.py \
	tests/unit/test_hostile_state.py tests/unit/test_hostile_packed.py
TSAN := report_signal_unsafe=0:history_size=4:exitcode=66:suppressions=tests/tsan.supp:log_path=build/tsan/report

.PHONY: asan
asan: setup ## the core under the address sanitizer: races, moves by hand, damaged state files
	@SWAPTIDE_SANITIZE=address $(PYTHON) setup.py -q build --build-temp build/asan-objects --build-lib build/asan
	@LD_PRELOAD="$$(gcc -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 \
		PYTHONPATH=build/asan $(PYTEST) -m "not long" $(SANITIZED) $(ARGS)

.PHONY: tsan
tsan: setup ## the core under the thread sanitizer: readers, writers and movers in parallel
	@SWAPTIDE_SANITIZE=thread $(PYTHON) setup.py -q build --build-temp build/tsan-objects --build-lib build/tsan
	@rm -f build/tsan/report.*
	@LD_PRELOAD="$$(gcc -print-file-name=libtsan.so)" TSAN_OPTIONS="$(TSAN)" PYTHONPATH=build/tsan \
		$(PYTEST) -m "not long" tests/unit/test_cache_race.py tests/unit/test_cache_small.py $(ARGS) \
		|| { cat build/tsan/report.* 2>/dev/null; exit 1; }

FUZZ_SECONDS := 120

.PHONY: fuzz
fuzz: setup ## hostile input, new every time, to each of the three doors (FUZZ_SECONDS=120 for each)
	@SWAPTIDE_FUZZ_SECONDS=$(FUZZ_SECONDS) SWAPTIDE_FUZZ_EXAMPLES=20000 \
		$(PYTEST) -s --timeout=$$(($(FUZZ_SECONDS) + 600)) -k "as_long_as_asked or hostile_input" \
		tests/unit/test_hostile_state.py tests/unit/test_hostile_input.py \
		tests/real/test_hostile.py tests/real/test_hostile_control.py $(ARGS)

# The benchmark: make bench QUICK=1, make bench ROWS="randread-4k-d16 *-at-cap", make bench ROUNDS=3
QUICK :=
ROWS :=
ROUNDS :=

.PHONY: bench
bench: ## measure beside other servers, under an hour (QUICK=1 five minutes; ROWS="name or glob ..."; ROUNDS=n)
	@.ci/setup bench
	@$(PYTHON) bench/run.py $(if $(filter-out 0 no,$(QUICK)),--quick) $(foreach row,$(ROWS),--row '$(row)') \
		$(if $(ROUNDS),--rounds '$(ROUNDS)')

# The dashboard: make dashboard METRICS=ADDR:PORT (where the daemon answers), LISTEN=ADDR:PORT (where Prometheus shall).
METRICS :=
LISTEN :=

.PHONY: dashboard
dashboard: setup ## a Prometheus with our page and alerts on a running daemon, until Ctrl-C (METRICS=, LISTEN=)
	@$(PYTHON) dashboards/run.py $(if $(METRICS),--metrics '$(METRICS)') $(if $(LISTEN),--listen '$(LISTEN)')

.PHONY: pictures
pictures: ## draw docs/dashboard.png and docs/top.svg anew, of a real daemon at work (6 minutes)
	@.ci/setup test
	@$(PYTHON) tests/real/pictures.py

KILLS := 200
# What the tortured disk spills to: file, nbd or pair.
STORE := file

.PHONY: torture
torture: setup ## kills at random and named places, faults, cap changes under a load with a model (KILLS=200, STORE=file|nbd|pair)
	@$(PYTHON) tests/real/torture.py --kills $(KILLS) --store $(STORE)

.PHONY: lint
lint: setup ## ruff, mypy strict, cython-lint
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy $(SOURCES)
	@PATH="$(CURDIR)/.venv/bin:$$PATH" cython-lint $(wildcard $(ROOMS:=/*.pyx) $(ROOMS:=/*.pxd))

.PHONY: format
format: setup ## let ruff format the Python files
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

.PHONY: clean
clean: ## remove build products; .venv and the guest image stay
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis $(ROOMS:=/*.so)
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean ## remove .venv and the guest image as well
	rm -rf .venv .cache src/*.egg-info
