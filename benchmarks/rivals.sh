#!/bin/sh
# Makes the environments of the rivals in the root of the repository: .venv-rivals, pinned in rivals.txt, and
# .venv-rivals-triton, pinned in rivals-triton.txt, since Triton's server does not fit beside the others.
# torchpipe 0.2.25 compiles its core library when it is first imported, which takes a C++ compiler and some
# minutes, so it is imported here. Its image library comes compiled, with OpenCV in it.
set -eu
cd "$(dirname "$0")/.."

make_environment() {  # FOLDER PINS
    "${PYTHON:-python3}" -m venv "$1"
    echo '*' > "$1/.gitignore"
    grep -v '^torchpipe==' "$2" | "$1/bin/python" -m pip install --quiet -r /dev/stdin
}

make_environment .venv-rivals benchmarks/rivals.txt
grep '^torchpipe==' benchmarks/rivals.txt | .venv-rivals/bin/python -m pip install --quiet --no-deps -r /dev/stdin
make_environment .venv-rivals-triton benchmarks/rivals-triton.txt
TORCHPIPE_SKIP_TENSORRT=1 .venv-rivals/bin/python -I -c 'import torchpipe'
for tool in wrk h2load; do
    command -v "$tool" > /dev/null || echo "front.py needs $tool as well: apt-get install wrk nghttp2-client" >&2
done
