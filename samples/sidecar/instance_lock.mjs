/**
 * One server for each app, however often the app is started.
 *
 * The lock is a file in the app's data folder that says which process holds it, when that process
 * began, and, once there is one, where its server is. A holder that was killed cannot remove its
 * file, and its number may belong to another process by now; so a holder counts as alive only when
 * the process of that number began at that time. Nothing here knows servers or models.
 *
 * Electron: `app.requestSingleInstanceLock()` keeps a second main process of the same app away
 * altogether; with it this file only guards against a server that outlived a crash. Tauri: the
 * plugin `single-instance` does the same.
 */

import { execFile } from "node:child_process";
import { randomUUID } from "node:crypto";
import fs from "node:fs/promises";
import path from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { promisify } from "node:util";

const run = promisify(execFile);
const LOCK_NAME = "server.lock";
const POLL_MS = 50;
// A lock that holds no record for so long was left by a process that was killed while writing it.
const MAX_WRITING_MS = 5_000;

/**
 * Tell when a process began.
 *
 * @param {number} pid
 * @returns {Promise<string | null>} A text that no other process of this number has; null where
 *   there is no such process; "" where there is one and the system does not tell.
 */
export async function startTimeOf(pid) {
  if (!isThere(pid)) return null;
  try {
    if (process.platform === "linux") {
      const stat = await fs.readFile(`/proc/${pid}/stat`, "utf8");
      // The name, in brackets, may hold anything; the state is next, the start time the 20th.
      const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
      if (fields[0] === "Z") return null; // ended, and its parent has not looked yet
      const boot = await fs.readFile("/proc/sys/kernel/random/boot_id", "utf8");
      return `${boot.trim()} ${fields[19]}`;
    }
    if (process.platform === "win32") {
      const script = `(Get-Process -Id ${Number(pid)}).StartTime.ToFileTimeUtc()`;
      const options = { windowsHide: true, timeout: 10_000 };
      const found = await run("powershell.exe", ["-NoProfile", "-Command", script], options);
      return found.stdout.trim();
    }
    const options = { env: { ...process.env, LC_ALL: "C", TZ: "UTC" } };
    return (await run("ps", ["-o", "lstart=", "-p", String(pid)], options)).stdout.trim();
  } catch {
    return isThere(pid) ? "" : null;
  }
}

/** Tell whether a process of this number exists. */
function isThere(pid) {
  if (!(pid > 0)) return false; // 0 and less mean groups of processes
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code === "EPERM"; // somebody else's
  }
}

/**
 * The lock of one data folder.
 *
 * @typedef {{token: string, pid: number, started: string, server: object | null}} Holder
 */
export class InstanceLock {
  #path;
  #record = null;

  /** @param {string} folder The app's data folder; made where it is missing. */
  constructor(folder) {
    this.#path = path.join(folder, LOCK_NAME);
  }

  /** Whether this process holds the lock. */
  get isHeld() {
    return this.#record !== null;
  }

  /**
   * Take the lock, also from a holder that is gone.
   *
   * @returns {Promise<Holder | null>} null where it is held now; else who holds it.
   */
  async acquire() {
    if (this.isHeld) return null;
    await fs.mkdir(path.dirname(this.#path), { recursive: true, mode: 0o700 });
    const started = (await startTimeOf(process.pid)) ?? "";
    const record = { token: randomUUID(), pid: process.pid, started, server: null };
    for (;;) {
      if (await this.#create(record)) {
        this.#record = record;
        return null;
      }
      const holder = await this.read();
      if (holder !== null && (await isAlive(holder))) return holder;
      if (holder !== null || (await this.#isAbandoned())) await this.#remove(holder);
      await pause(POLL_MS);
    }
  }

  /** Say where the server is, or null while there is none. Only for the holder. */
  async tell(server) {
    if (this.#record === null) return;
    this.#record = { ...this.#record, server };
    const temporary = `${this.#path}.${this.#record.token}`;
    await fs.writeFile(temporary, JSON.stringify(this.#record), { mode: 0o600 });
    await fs.rename(temporary, this.#path);
  }

  /** Return what the lock says, whoever wrote it; null where there is none, or half of one. */
  async read() {
    try {
      const record = JSON.parse(await fs.readFile(this.#path, "utf8"));
      return typeof record?.token === "string" && Number.isInteger(record.pid) ? record : null;
    } catch {
      return null;
    }
  }

  /** Give the lock back; does nothing where somebody else has it. */
  async release() {
    const record = this.#record;
    this.#record = null;
    if (record !== null && (await this.read())?.token === record.token) {
      await fs.rm(this.#path, { force: true });
    }
  }

  async #create(record) {
    try {
      await fs.writeFile(this.#path, JSON.stringify(record), { flag: "wx", mode: 0o600 });
      return true;
    } catch (error) {
      if (error.code !== "EEXIST") throw error;
      return false;
    }
  }

  async #isAbandoned() {
    const age = await ageOf(this.#path);
    return age !== null && age > MAX_WRITING_MS;
  }

  /** Remove the lock of a holder that is gone, one process at a time. */
  async #remove(holder) {
    // Two that saw the same dead holder must not remove the lock that one of them took since.
    const guard = `${this.#path}.removing`;
    try {
      await fs.mkdir(guard);
    } catch (error) {
      if (error.code !== "EEXIST") throw error;
      if (((await ageOf(guard)) ?? 0) > MAX_WRITING_MS) await fs.rm(guard, { recursive: true });
      return;
    }
    try {
      const now = await this.read();
      if (now?.token === holder?.token) await fs.rm(this.#path, { force: true });
    } finally {
      await fs.rm(guard, { recursive: true, force: true });
    }
  }
}

/** Tell whether the process that wrote a record is still there. */
export async function isAlive(holder) {
  const started = await startTimeOf(holder.pid);
  return started !== null && (!started || !holder.started || started === holder.started);
}

/** Return how long ago something was written, in ms; null where it is gone. */
async function ageOf(file) {
  try {
    return Date.now() - (await fs.stat(file)).mtimeMs;
  } catch {
    return null;
  }
}
