.PHONY: help demo ocr test lint fix bench docs site site-serve site-check site-test test-all setup
python = .venv/bin/python

help:  ## list these targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20
setup:  ## make .venv, with everything that the other targets need
	@scripts/setup
demo: setup  ## classify real photographs, one by one and under load
	$(python) demo/run.py
ocr: setup  ## read the text in the example pictures, with a graph of three networks
	$(python) examples/ocr/run.py
test: setup  ## the test suite, but for what takes minutes
	$(python) -m pytest -m "not slow"
test-all: setup site-check  ## all tests but those in a browser: storms, soaks and servers too
	$(python) -m pytest -m "not browser"
site-test: setup  ## build the site, and look at every page in a real browser
	scripts/browser
	$(python) -m pytest -m browser
lint: setup  ## formatter, linter and types
	scripts/lint
fix: setup  ## the same, and mend what can be mended
	scripts/lint --fix
docs: setup  ## write docs/reference from docstrings, in English and Chinese
	$(python) scripts/reference.py
site: setup  ## build the documentation's site, in both languages, into site/build
	$(python) scripts/site.py
	scripts/node npm run build
site-serve:  ## serve it on 127.0.0.1; port=3001 chooses another port
	@test -e site/build/index.html || { echo "there is no site yet: run make site" >&2; exit 1; }
	scripts/node npm run serve -- --port $(or $(port),3000)
site-check: setup  ## old and missing translations, dead links, code that differs between the languages
	$(python) scripts/site.py --check
	$(python) scripts/reference.py --check
bench: setup  ## every benchmark; rivals are installed into .venv-rivals
	benchmarks/rivals.sh
	for name in dispatch preprocess waiting service batching images tensors process engines ocr soak front; do $(python) benchmarks/$$name.py || exit 1; done
