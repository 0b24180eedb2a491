// What the page asks of the server that served it, and nobody else. Addresses are relative, so
// that the page also works behind a proxy that puts it into a folder.

import { readEvents } from "./sse.js";

const KEY = "qwen-edge.key";
const POLL_MS = 1000;
const MAX_POLL_MS = 5000;

let apiKey = null;

/** What went wrong, for people: a message and, where there is one, what to do about it. */
export class ServerError extends Error {
  constructor(message, { fix = "", status = 0 } = {}) {
    super(message);
    this.fix = fix;
    this.status = status;
  }
}

/**
 * Take the key from this tab, or from the address (`…/#key=KEY`, which programs that start the
 * server can open); the address is then cleared of it.
 */
export function readKey() {
  const given = new URLSearchParams(location.hash.slice(1)).get("key");
  if (given !== null) {
    history.replaceState(null, "", location.pathname + location.search);
    keepKey(given);
    return;
  }
  try {
    apiKey = sessionStorage.getItem(KEY);
  } catch {
    apiKey = null; // storage is forbidden: the key will be asked for
  }
}

/** Use a key from now on. It is kept until the tab is closed, no longer. */
export function keepKey(key) {
  apiKey = key;
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // Only remembered by this page, then.
  }
}

/** Return whether a key is being sent. */
export function hasKey() {
  return Boolean(apiKey);
}

/** Say in words what a request that failed before any answer means. */
function unreachable() {
  return new ServerError(`The server at ${location.host} does not answer.`, {
    fix: "See whether `qwen-edge serve` is still running, then try again.",
  });
}

/** Return what the server said is wrong, as an error. */
function errorOf(error, status) {
  return new ServerError(String(error?.message ?? `The server answered with status ${status}.`), {
    fix: typeof error?.fix === "string" ? error.fix : "",
    status,
  });
}

async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (apiKey) headers.Authorization = `Bearer ${apiKey}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw unreachable();
  }
  if (!response.ok) {
    const body = await response.json().catch(() => null);
    throw errorOf(body?.error, response.status);
  }
  return response;
}

/** Return the models that are served. */
export async function listModels(signal) {
  const body = await (await call("v1/models", { signal })).json();
  return body.data;
}

/** Return how far the server is: state "ok", "loading", "failed" or "unreachable", and a text. */
export async function readHealth(signal) {
  let response;
  let body;
  try {
    response = await fetch("health", { signal, cache: "no-store" });
    body = await response.json().catch(() => ({}));
  } catch (error) {
    if (signal?.aborted) throw error;
    return { state: "unreachable", text: unreachable().message, fix: unreachable().fix };
  }
  if (response.ok) return { state: "ok", text: "", fix: "" };
  if (body.status === "failed") {
    const error = typeof body.error === "string" ? { message: body.error } : body.error;
    const { message, fix } = errorOf(error, response.status);
    return { state: "failed", text: `The model did not load. ${message}`, fix };
  }
  if (body.status !== "loading") {
    return { state: "unreachable", text: "The server is stopping.", fix: "" };
  }
  const waitMs = Number(response.headers.get("Retry-After")) * 1000;
  return { state: "loading", text: progressText(body.progress), fix: "", waitMs };
}

function progressText(progress) {
  if (typeof progress === "number") return `The model is loading: ${Math.round(progress * 100)} %`;
  if (typeof progress === "string" && progress) return `The model is loading: ${progress}`;
  return "The model is loading";
}

/**
 * Return when the server can answer, having told `report` each state on the way. It also waits
 * for a server that has gone or a model that failed: either may be started again.
 */
export async function waitUntilReady(report, signal) {
  for (;;) {
    const health = await readHealth(signal);
    report(health);
    if (health.state === "ok") return;
    const waitMs = Math.min(Math.max(health.waitMs || POLL_MS, POLL_MS / 4), MAX_POLL_MS);
    await pause(waitMs, signal);
  }
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

/** Yield the chunks of an answer. Aborting the signal closes the connection: the model stops. */
export async function* streamChat(request, signal) {
  const response = await call("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(request),
    signal,
  });
  try {
    for await (const data of readEvents(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw errorOf(chunk.error, response.status);
      yield chunk;
    }
  } catch (error) {
    if (signal.aborted || error instanceof ServerError) throw error;
    // Of a connection that breaks, each browser says something else.
  }
  throw new ServerError("The connection broke off in the middle of the answer.", {
    fix: "See whether `qwen-edge serve` is still running, then try again.",
  });
}
