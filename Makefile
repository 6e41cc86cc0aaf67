# make demo   split two examples on this machine; ARCHIVE=path BATCH_SIZE=n OUT=folder KEEP=1
# make test   lint, types, import rules and the tests
# make soak   the tests that take longest: killed processes, crowds of messages, a second database
# make quick  the tests that need no service, in under a minute
# make bench  measure both lanes on real JPEGs; GIGABYTES=1.6 REPEAT=3
# make serve  run listener and flow in one process, with the environment's Prefect API and AWS account
# make submit split an archive in S3: ARCHIVE=s3://bucket/key; PLAN=1 only prints the batches, ANSWER=1
#             sends BIOSPEX's trigger, with UPDATES_QUEUE_URL for the callback
# make deploy set everything up on AWS, after a few questions; see docs/deploying.md

PYTHON ?= python3
BATCH_SIZE ?=
KEEP ?=
OUT ?=
PLAN ?=
ANSWER ?=
export ARCHIVE
GIGABYTES ?= 1.6
REPEAT ?= 3

# Another PYTHON makes the virtual environment anew. The file DEMO marks that the packages of the demo
# are installed, the file INSTALLED that those of the tests are too.
VENV ?= .venv
BIN := $(VENV)/bin
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
DEMO := $(VENV)/.demo-$(VERSION)
INSTALLED := $(VENV)/.installed-$(VERSION)
export DO_NOT_TRACK = 1
# Hundreds of processes import the same modules, so Python has to keep the compiled ones.
unexport PYTHONDONTWRITEBYTECODE
export PREFECT_SERVER_ANALYTICS_ENABLED = false

.PHONY: help setup demo test soak quick lint lock serve submit deploy bench

# Installs the packages of a lock into a virtual environment and removes all others. On a terminal one
# line shows the progress. uv does not read pip's settings; --system-certs trusts the system's certificates.
define install
@{ $(BIN)/uv pip sync --system-certs --python $(1) --compile-bytecode --require-hashes $(2) 2>&1; \
		echo "status $$?"; } | \
	while IFS= read -r line; do \
		case "$$line" in \
			("status "*) test ! -t 2 || printf '\r\033[K'; exit "$${line#status }";; \
			(Using*|Resolved*|Installed*|Uninstalled*|Bytecode*|" "[-+~]" "*) ;; \
			(*Download*|Prepared*) test ! -t 2 || printf '\r\033[K  %s' "$$line";; \
			(*) echo "$$line";; \
		esac; \
	done
endef

# The first lines of this file.
help:
	@sed -n '/^# /!q; s/^# //p' $(firstword $(MAKEFILE_LIST))

setup: $(INSTALLED)

$(DEMO): requirements-demo.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	@echo "Installing $$(grep -c == $<) Python packages into $(VENV); this takes a minute or less, once."
	@$(PYTHON) -m venv --clear $(VENV) || { echo "$(VENV) cannot be made; name another place: make" \
		"$(MAKECMDGOALS) VENV=/a/writable/folder"; exit 1; }
	@# pip installs uv, which needs a fraction of pip's time for the others.
	@awk '/^[^ ]/ {mine = /^uv==/} mine' $< | $(BIN)/pip install --quiet \
		--disable-pip-version-check --no-deps --require-hashes -r /dev/stdin
	$(call install,$(VENV),$<)
	@touch $@

$(INSTALLED): $(DEMO) requirements-dev.lock requirements-zooniverse.lock
	@echo "Installing the packages of the tests and checks into $(VENV), which is 1.5 GB on disk then."
	$(call install,$(VENV),requirements-dev.lock)
	@$(BIN)/uv pip check --quiet --python $(VENV)
	@$(PYTHON) -m venv --without-pip $(VENV)/zooniverse
	$(call install,$(VENV)/zooniverse,requirements-zooniverse.lock)
	@touch $@

# The shell reads ARCHIVE from the environment, so a name may have spaces and quotes.
demo: $(DEMO)
	@$(BIN)/python -m devtools.demo $(if $(BATCH_SIZE),--batch-size "$(BATCH_SIZE)") $(if $(KEEP),--keep) \
		$(if $(OUT),--out "$(OUT)") $${ARCHIVE:+"$$ARCHIVE"}

test: lint
	$(BIN)/pytest

soak: setup
	$(BIN)/pytest -m soak

quick: setup
	$(BIN)/pytest -m "not slow" -n auto

lint: setup
	@! git ls-files | grep -E '\.(orig|rej|bak|swp)$$' || { echo 'Leftovers of a tool are tracked.'; exit 1; }
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers auto
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell
	$(BIN)/hadolint Dockerfile
	$(BIN)/shellcheck deploy/deploy.sh
	$(BIN)/cfn-lint deploy/stack.yaml

serve: $(DEMO)
	$(BIN)/python -m flows.serve

deploy: setup
	deploy/deploy.sh

submit: $(DEMO)
	@$(BIN)/python -m cli.submit $(if $(PLAN),--plan) $(if $(ANSWER),--answer) $${ARCHIVE:+"$$ARCHIVE"}

bench: setup
	$(BIN)/python -m bench.lanes --gigabytes $(GIGABYTES) --repeat $(REPEAT)

COMPILE = $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11

# The locks contain versions and hashes, but no index URLs.
lock: setup
	$(COMPILE) --upgrade pyproject.toml -o requirements.lock
	$(COMPILE) --upgrade pyproject.toml --group dev -c requirements.lock -o requirements-dev.lock
	$(COMPILE) pyproject.toml --group demo -c requirements-dev.lock -o requirements-demo.lock
	$(COMPILE) --upgrade --group zooniverse -o requirements-zooniverse.lock
