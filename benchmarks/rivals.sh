#!/bin/sh
# Makes .venv-rivals in the root of the repository: the environment of the rivals, pinned in rivals.txt.
# torchpipe 0.2.25 compiles its core library when it is first imported, which takes a C++ compiler and some
# minutes, so it is imported here. Its image library comes compiled, with OpenCV in it.
set -eu
cd "$(dirname "$0")/.."
pins=benchmarks/rivals.txt
python=.venv-rivals/bin/python
"${PYTHON:-python3}" -m venv .venv-rivals
echo '*' > .venv-rivals/.gitignore
grep -v '^torchpipe==' "$pins" | "$python" -m pip install --quiet -r /dev/stdin
grep '^torchpipe==' "$pins" | "$python" -m pip install --quiet --no-deps -r /dev/stdin
TORCHPIPE_SKIP_TENSORRT=1 "$python" -I -c 'import torchpipe'
