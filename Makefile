.PHONY: help demo ocr test test-all lint fix bench docs setup
python = .venv/bin/python

help:  ## list these targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16
setup:  ## make .venv, with everything that the other targets need
	@scripts/setup
demo: setup  ## classify real photographs, one by one and under load
	$(python) demo/run.py
ocr: setup  ## read the text in the example pictures, with a graph of three networks
	$(python) examples/ocr/run.py
test: setup  ## the test suite, but for what takes minutes
	$(python) -m pytest -m "not slow"
test-all: setup  ## all tests: storms, soaks, servers and browsers too
	$(python) -m pytest
lint: setup  ## formatter, linter and types
	scripts/lint
fix: setup  ## the same, and mend what can be mended
	scripts/lint --fix
docs: setup  ## write docs/reference from docstrings, in English and Chinese
	$(python) scripts/reference.py
bench: setup  ## every benchmark; rivals are installed into .venv-rivals
	benchmarks/rivals.sh
	for name in dispatch preprocess waiting service batching images tensors process engines ocr soak; do $(python) benchmarks/$$name.py || exit 1; done
