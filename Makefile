# make train: train cifar10.h5.   make test: run the tests.
# make lint: check the style.     make paper: draw the paper's plots, write
# the numbers into README.md and paper/README.md, and write publish.html; with
# CODE=URL, its links lead to where the repository is published.
# make matrix: the first exercise on seven versions of TensorFlow; it takes
# an hour and 16 GB.   make torture: kill the scripts, fill the disk and so
# on; it needs DESSERTS and FOUR_CLASSES, zips of images, and three to
# four hours.
# Each first makes .venv, which takes Python 3.9 to 3.13.
PYTHON ?= python3
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: train test lint paper matrix torture

train: .venv/ready
	@echo "At its end, this replaces the cifar10.h5 that is here."
	@. .venv/bin/activate && ./0-transfer.py || { \
	    status=$$?; [ $$status -eq 69 ] || exit $$status; \
	    echo "No network: rehearsing with digits instead."; \
	    ./0-transfer.py --rehearse && \
	    echo "This was a rehearsal: cifar10.h5 has not changed."; }

test: .venv/ready
	. .venv/bin/activate && python -m pytest

lint: .venv/ready
	. .venv/bin/activate && pycodestyle --exclude=.venv*,0-main.py . && \
	    ruff check --select F --exclude 0-main.py . && \
	    vermin --quiet --no-tips --target=3.9- 0-transfer.py 0-main.py

paper: .venv/ready
	. .venv/bin/activate && paper/figures.py && paper/fill_in.py && \
	    paper/publish.py $(if $(CODE),--code $(CODE))

matrix: .venv/ready
	. .venv/bin/activate && tests/matrix.py

torture: .venv/ready
	. .venv/bin/activate && tests/torture.py

.venv/ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 9) <= sys.version_info < \
	    (3, 14) else "Python %d.%d found, 3.9 to 3.13 expected: \
	make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet -r requirements.txt
	@touch $@
