// The server's own routes, as any client asks them.

import { storedKey } from "./key.mjs";
import { payloads } from "./sse.mjs";

const ROOT = new URL("..", document.baseURI);

/** What the server refused: `param` is the path of the field, `status` 0 where no answer came. */
export class ApiError extends Error {
  constructor(message, status, param = null) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

const listeners = new Set();

/** Call `listener(status)` after each answer, 0 for none. Returns what ends it. */
export function onAnswer(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

function tell(status) {
  for (const listener of listeners) listener(status);
}

/** One request: a `Response` whose status is a success. Raises ApiError; an abort passes through. */
export async function send(method, path, { body, signal, headers = {}, key = storedKey() } = {}) {
  const raw = body instanceof Blob;
  let response;
  try {
    response = await fetch(new URL(path.replace(/^\//, ""), ROOT), {
      method,
      signal,
      credentials: "omit",
      cache: "no-store",
      headers: {
        accept: "application/json",
        ...(key ? { authorization: `Bearer ${key}` } : {}),
        ...(body !== undefined && !raw ? { "content-type": "application/json" } : {}),
        ...headers,
      },
      body: body === undefined || raw ? body : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    tell(0);
    throw new ApiError("The server does not answer.", 0);
  }
  tell(response.status);
  if (response.ok) return response;
  throw refused(response.status, await response.text());
}

const json = async (method, path, options) => (await send(method, path, options)).json();

export const get = (path, options) => json("GET", path, options);
export const post = (path, body, options) => json("POST", path, { ...options, body });
export const patch = (path, body) => json("PATCH", path, { body });
export const remove = (path) => json("DELETE", path);

/** The JSON events of a stream, each as it comes. */
export async function* events(path, body, { signal } = {}) {
  const headers = { accept: "text/event-stream" };
  const response = await send("POST", path, { body, signal, headers });
  try {
    for await (const payload of payloads(response.body)) {
      if (payload.error) throw new ApiError(payload.error.message ?? String(payload.error), 200);
      if (payload.status === "error") throw new ApiError(payload.message, 200);
      yield payload;
    }
  } catch (error) {
    if (error instanceof ApiError || error.name === "AbortError") throw error;
    tell(0);
    throw new ApiError("The connection was lost before the answer ended.", 0);
  }
}

function refused(status, text) {
  let body;
  try {
    body = JSON.parse(text);
  } catch {
    return new ApiError(`The server answered ${status}.`, status);
  }
  if (Array.isArray(body.detail)) {
    const paths = body.detail.map((item) => item.loc.filter((part) => part !== "body").join("."));
    const said = body.detail.map((item, index) => (paths[index] ? `${paths[index]}: ${item.msg}` : item.msg));
    return new ApiError(said.join("; "), status, paths[0] || null);
  }
  const error = body.error ?? body;
  const message = typeof error === "string" ? error : (error.message ?? body.detail ?? `The server answered ${status}.`);
  return new ApiError(message, status, error.param ?? null);
}
