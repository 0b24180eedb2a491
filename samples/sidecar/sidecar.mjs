/**
 * Runs the model server beside an app: starts it, finds its port, and stops it with the app.
 *
 *     const sidecar = new Sidecar({ command: ["./bundle/qwen-edge", "serve"], dataDir });
 *     const { url, key } = await sidecar.connection();
 *     await sidecar.stop();
 *
 * The server takes a free port and a random key, and tells both through a file that only this user
 * can read. It ends when its standard input ends and when this process is gone, so nothing is left
 * behind even where this process is killed. Read `chat.mjs` for how to talk to it.
 *
 * Where this belongs:
 *
 * - Electron: into the main process, not into a window. `dataDir` is `app.getPath("userData")`.
 *   Electron Builder copies the bundle with `extraResources` (outside of the asar archive, from
 *   which nothing can be started); `process.resourcesPath` says where it is. Quitting must wait:
 *
 *       if (!app.requestSingleInstanceLock()) app.exit(0);
 *       let hasStopped = false;
 *       app.on("before-quit", (event) => {
 *         if (hasStopped) return;
 *         event.preventDefault();
 *         sidecar.stop().finally(() => { hasStopped = true; app.quit(); });
 *       });
 *
 *   A window gets answers through IPC of yours; the key stays in the main process.
 * - Tauri: the same steps in Rust, with `Command::new` in `setup`. `bundle.externalBin` takes a
 *   single file, named `NAME-TARGET_TRIPLE` (`qwen-edge-x86_64-unknown-linux-gnu`); a bundle is a
 *   folder, so it goes into `bundle.resources` and is started by its path. Keep the child's
 *   standard input open, and drop it in `RunEvent::Exit`.
 */

import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { EventEmitter } from "node:events";
import fs from "node:fs/promises";
import path from "node:path";
import { setTimeout as pause } from "node:timers/promises";

import { InstanceLock, isAlive } from "./instance_lock.mjs";

const POLL_MS = 50;
const REQUEST_LIMIT_MS = 5_000;
const KEPT_LINES = 40;
const FIRST_BACKOFF_MS = 250;
const DEFAULTS = {
  readyLimitMs: 180_000,
  stopLimitMs: 5_000,
  maxRestarts: 3,
  restartWindowMs: 60_000,
};
// What an app's own launcher sets for the app, and another Python or OpenVINO must not see.
const FOREIGN =
  /^(PYTHON(HOME|PATH|STARTUP|USERBASE)|LD_LIBRARY_PATH|LD_PRELOAD|DYLD_.*|QWEN_EDGE_API_KEY)$/i;

/**
 * What went wrong, and what to do about it.
 *
 * `output` is what the server said last, for a person or a report.
 */
export class SidecarError extends Error {
  constructor(problem, fix, output = "") {
    super(output ? `${problem}\n${fix}\nThe server said:\n${output}` : `${problem}\n${fix}`);
    this.name = "SidecarError";
    this.problem = problem;
    this.fix = fix;
    this.output = output;
  }
}

/** Return an environment for the server: this one, without what would mislead it. */
export function cleanEnvironment(environment = process.env) {
  return Object.fromEntries(Object.entries(environment).filter(([name]) => !FOREIGN.test(name)));
}

/**
 * The server of one app.
 *
 * Events: "restarting" (SidecarError, attempt) after a crash; "failed" (SidecarError) when it will
 * not be started again by itself.
 *
 * @typedef {{url: string, key: string | null, pid: number, isOwn: boolean}} Connection
 */
export class Sidecar extends EventEmitter {
  #options;
  #lock;
  #server = null; // {child, output, readyFile, exited} of the one that was started here
  #starting = null; // a promise while one is being started
  #failure = null;
  #isStopping = false;
  #crashes = [];

  /**
   * @param {object} options
   * @param {string[]} options.command The program and its arguments, up to the package.
   * @param {string} options.dataDir A folder of this app's own; another app has another.
   * @param {number} [options.readyLimitMs] How long reading and loading the model may take.
   * @param {number} [options.stopLimitMs] How long it may take to end, each time it is asked to.
   * @param {number} [options.maxRestarts] How many crashes within `restartWindowMs` are mended.
   * @param {number} [options.restartWindowMs]
   */
  constructor(options) {
    super();
    this.#options = { ...DEFAULTS, ...options };
    this.#lock = new InstanceLock(this.#options.dataDir);
  }

  /**
   * Return where the server is, as soon as it can answer: the one that runs, or a new one.
   *
   * Ask anew before each conversation: a server that crashed comes back at another port, and one
   * that another start of this app owns ends with that.
   *
   * @returns {Promise<Connection>}
   * @throws {SidecarError}
   */
  connection() {
    if (this.#isStopping) return Promise.reject(stoppedError());
    if (this.#failure !== null) return Promise.reject(this.#failure);
    this.#starting ??= this.#connect().catch((error) => {
      this.#starting = null;
      throw error;
    });
    return this.#starting;
  }

  /** Stop the server, where it was started here, and wait for its end. */
  async stop() {
    this.#isStopping = true;
    if (this.#server !== null) await this.#end(this.#server);
    // One that is being started sees that nobody wants it, and is ended there.
    await this.#starting?.catch(() => {});
    this.#server = null;
    await this.#lock.release();
  }

  /** Forget earlier crashes, so that `connection` tries again. */
  reset() {
    this.#failure = null;
    this.#crashes = [];
  }

  async #connect() {
    const deadline = Date.now() + this.#options.readyLimitMs;
    while (!this.#isStopping) {
      if ((await this.#lock.acquire()) === null) return this.#start(deadline);
      const found = await this.#find(deadline);
      if (found !== null) return found; // else its holder is gone: the lock is free
    }
    throw stoppedError();
  }

  /** Start a server and wait until it can answer. The lock is held. */
  async #start(deadline) {
    const { command, dataDir } = this.#options;
    await removeOldFiles(dataDir);
    if (this.#isStopping) throw stoppedError();
    const readyFile = path.join(dataDir, `server-${randomUUID()}.json`);
    const server = launch(command, readyFile);
    this.#server = server;
    try {
      const { url, api_key: key, pid } = await waitForFile(server, deadline);
      await waitForHealth(url, deadline, server);
      server.pid = pid;
      await this.#lock.tell({ pid, port: Number(new URL(url).port), ready_file: readyFile });
      this.#watch(server);
      return { url, key, pid, isOwn: true };
    } catch (error) {
      await this.#end(server);
      this.#server = null;
      await this.#lock.release();
      throw error;
    }
  }

  /** Return the server of another start of this app; null where that start is gone. */
  async #find(deadline) {
    for (; Date.now() < deadline && !this.#isStopping; await pause(POLL_MS)) {
      const holder = await this.#lock.read();
      if (holder === null || !(await isAlive(holder))) return null;
      const ready = holder.server && (await readJson(holder.server.ready_file));
      if (ready && (await isHealthy(ready.url))) {
        this.#starting = null; // look again the next time: it is not ours to keep
        return { url: ready.url, key: ready.api_key, pid: ready.pid, isOwn: false };
      }
    }
    throw new SidecarError(
      "Another start of this app has a server that does not answer.",
      "Close the other one, or wait until it has loaded the model.",
    );
  }

  /** Start the server again where it ends by itself, but not for ever. */
  #watch(server) {
    server.exited.then(async () => {
      if (this.#isStopping || this.#server !== server) return;
      const { maxRestarts, restartWindowMs } = this.#options;
      const now = Date.now();
      this.#crashes = [...this.#crashes.filter((time) => now - time < restartWindowMs), now];
      this.#server = null;
      const error = crashError(server);
      if (this.#crashes.length > maxRestarts) return this.#fail(error);
      this.emit("restarting", error, this.#crashes.length);
      const backoff = FIRST_BACKOFF_MS * 2 ** (this.#crashes.length - 1);
      this.#starting = this.#startAgain(backoff);
      await this.#starting.catch((failure) => this.#fail(failure));
    });
  }

  async #startAgain(backoff) {
    await this.#lock.tell(null);
    await pause(backoff);
    if (this.#isStopping) throw stoppedError();
    return this.#start(Date.now() + this.#options.readyLimitMs);
  }

  /** End a server: kindly, then less so. */
  async #end(server) {
    if (server.end !== null) return;
    const { stopLimitMs } = this.#options;
    server.child.stdin.end(); // on Windows the only kind way
    for (const signal of ["SIGTERM", "SIGKILL"]) {
      if (await endsWithin(server, stopLimitMs)) return;
      server.child.kill(signal);
    }
    await endsWithin(server, stopLimitMs);
  }

  async #fail(error) {
    this.#starting = null;
    if (this.#isStopping) return;
    this.#failure = error;
    await this.#lock.release();
    this.emit("failed", error);
  }
}

/** Start the program; keep what it says, and a promise of its end. */
function launch(command, readyFile) {
  const [program, ...rest] = command;
  const sidecarOptions = [
    ...["--port", "0", "--random-key", "--ready-file", readyFile],
    ...["--parent-pid", String(process.pid), "--stop-with-stdin"],
  ];
  const child = spawn(program, [...rest, ...sidecarOptions], {
    stdio: ["pipe", "ignore", "pipe"],
    env: cleanEnvironment(),
    windowsHide: true,
  });
  const server = { child, readyFile, program, lines: [], end: null, pid: null, exited: null };
  let partial = "";
  child.stderr.setEncoding("utf8");
  child.stderr.on("data", (text) => {
    const lines = (partial + text).split(/\r?\n/);
    partial = lines.pop().slice(-1000);
    server.lines = [...server.lines, ...lines].slice(-KEPT_LINES);
  });
  child.stdin.on("error", () => {}); // it ended before us
  server.exited = new Promise((resolve) => {
    const note = (how) => {
      server.end ??= how;
      if (partial) server.lines.push(partial);
      partial = "";
      resolve();
    };
    child.on("error", (error) => note(error.message));
    // "close", not "exit": all that it said has been read by then.
    child.on("close", (code, signal) => note(signal ?? `exit code ${code}`));
  });
  return server;
}

/** Return what the server wrote to its file once it listened. */
async function waitForFile(server, deadline) {
  for (; Date.now() < deadline; await pause(POLL_MS)) {
    const ready = await readJson(server.readyFile);
    if (ready !== null) return ready;
    if (server.end !== null) throw crashError(server, "before it was ready");
  }
  throw slowError(server);
}

/** Return when the server can answer. */
async function waitForHealth(url, deadline, server) {
  for (; Date.now() < deadline; await pause(POLL_MS)) {
    if (server.end !== null) throw crashError(server, "before it was ready");
    const { status, body } = await askHealth(url);
    if (status === 200) return;
    if (body?.status === "failed") {
      const told = body.error?.message ?? body.error ?? "it does not say why";
      const fix = body.error?.fix ?? "Look at what it said.";
      throw new SidecarError(`The model could not be loaded: ${told}`, fix, said(server));
    }
  }
  throw slowError(server);
}

/** Return the answer to /health; a status of 0 where there is none. */
async function askHealth(url) {
  try {
    const signal = AbortSignal.timeout(REQUEST_LIMIT_MS);
    const response = await fetch(`${url}/health`, { signal });
    return { status: response.status, body: await response.json().catch(() => null) };
  } catch {
    return { status: 0, body: null };
  }
}

async function isHealthy(url) {
  return (await askHealth(url)).status === 200;
}

async function endsWithin(server, limitMs) {
  const timer = new AbortController();
  const limit = pause(limitMs, false, { signal: timer.signal }).catch(() => false);
  const hasEnded = await Promise.race([server.exited.then(() => true), limit]);
  timer.abort();
  return hasEnded;
}

/** Remove what servers left that were killed. The lock is held, so none of them is alive. */
async function removeOldFiles(folder) {
  for (const name of await fs.readdir(folder)) {
    if (/^server-.*\.json$/.test(name)) await fs.rm(path.join(folder, name), { force: true });
  }
}

async function readJson(file) {
  try {
    return JSON.parse(await fs.readFile(file, "utf8"));
  } catch {
    return null;
  }
}

function said(server) {
  return server.lines.join("\n").trim();
}

function crashError(server, when = "by itself") {
  const problem = `The server ${JSON.stringify(server.program)} ended ${when}: ${server.end}.`;
  const fix = "Look at what it said, and whether the command is right.";
  return new SidecarError(problem, fix, said(server));
}

function stoppedError() {
  return new SidecarError("The server was stopped.", "Make a new Sidecar to start it again.");
}

function slowError(server) {
  return new SidecarError(
    "The server was not ready in time.",
    "Give it more time (readyLimitMs), or a smaller model.",
    said(server),
  );
}

