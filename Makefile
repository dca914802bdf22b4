# make train: train cifar10.h5.   make test: run the tests.
# make paper: draw the paper's pictures again, and write publish.html.
# Each first makes .venv, for which Python 3.9 to 3.13 must be there.
PYTHON ?= python3
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: train test paper

train: .venv/ready
	@echo "When it is done, this replaces the cifar10.h5 that is here."
	@. .venv/bin/activate && ./0-transfer.py || { \
	    status=$$?; [ $$status -eq 69 ] || exit $$status; \
	    echo "No network: rehearsing with digits instead."; \
	    ./0-transfer.py --rehearse && \
	    echo "This was a rehearsal: cifar10.h5 is what it was before."; }

test: .venv/ready
	. .venv/bin/activate && python -m pytest tests -rs -W ignore::DeprecationWarning

paper: .venv/ready
	. .venv/bin/activate && paper/figures.py && paper/publish.py

.venv/ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 9) <= sys.version_info < \
	    (3, 14) else "Python %d.%d found, 3.9 to 3.13 expected: \
	make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet -r requirements.txt
	@touch $@
