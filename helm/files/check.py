"""What `helm test` runs: health, a refusal without a key, the models, a completion and a streamed chat."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request

URL = os.environ["STEERSMAN_URL"]


def call(path: str, key: str | None = None, body: dict[str, object] | None = None) -> tuple[int, str]:
    """Status and text of an answer."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(URL + path, data, headers)  # the chart's own URL
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def expect(what: str, true: object, seen: object) -> None:
    print(("ok    " if true else "FAILED"), what, flush=True)
    if not true:
        sys.exit(f"{what}: {str(seen)[:2000]}")


def open_checks() -> None:
    """What needs no key."""
    status, text = call("/health")
    expect("GET /health answers 200", status == 200, (status, text))
    status, text = call("/v1/models")
    expect("GET /v1/models without a key answers 401", status == 401, (status, text))


def keyed_checks(key: str) -> None:
    status, text = call("/v1/models", key)
    expect("GET /v1/models lists a model", status == 200 and json.loads(text)["data"], (status, text))
    model = json.loads(text)["data"][0]["id"]
    asked = {"model": model, "prompt": "One, two,", "max_tokens": 4}
    status, text = call("/v1/completions", key, asked)
    expect(
        "POST /v1/completions answers with text",
        status == 200 and json.loads(text)["choices"],
        (status, text),
    )
    message = {"role": "user", "content": "Say hello."}
    asked = {"model": model, "messages": [message], "max_tokens": 8, "stream": True}
    status, text = call("/v1/chat/completions", key, asked)
    ended = status == 200 and text.rstrip().endswith("data: [DONE]")
    expect(
        "POST /v1/chat/completions streams to its end", ended and text.count("data: {") > 1, (status, text)
    )


def keys(*command: str) -> str:
    done = subprocess.run(["steersman", "keys", *command], capture_output=True, text=True, check=False)
    expect(f"steersman keys {command[0]}", done.returncode == 0, done.stderr)
    return done.stdout.strip()


def main() -> None:
    open_checks()
    if key := os.environ.get("STEERSMAN_KEY"):
        keyed_checks(key)
    elif os.environ.get("STEERSMAN_MAKES_KEY") == "true":
        key = keys("create", "--name", "helm test")
        try:
            keyed_checks(key)
        finally:
            keys("revoke", key)
    else:
        print("skipped: what needs a key (set tests.existingSecret)")


if __name__ == "__main__":
    main()
