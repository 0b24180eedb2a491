/**
 * A chat in the terminal with a server of its own.
 *
 *     node example.mjs [--data-dir DIR] [--ask TEXT]… -- COMMAND [ARG…]
 *     node example.mjs -- ./bundle/qwen-edge serve
 *     node example.mjs --ask "Why is the sky blue?" -- qwen-edge serve ./my-package
 *
 * Without --ask, each line of standard input is a question. The answer goes to standard output, all
 * else to standard error. Ctrl-C ends an answer; without one, the program.
 */

import os from "node:os";
import path from "node:path";
import readline from "node:readline";
import { parseArgs } from "node:util";

import { ChatError, streamChat } from "./chat.mjs";
import { Sidecar, SidecarError } from "./sidecar.mjs";

const NAME = "qwen-edge-sidecar-example";

/** Return where this system keeps the data of an app that belongs to one person and machine. */
function defaultDataDir() {
  const home = os.homedir();
  if (process.platform === "win32") {
    return path.join(process.env.LOCALAPPDATA ?? path.join(home, "AppData", "Local"), NAME);
  }
  if (process.platform === "darwin") {
    return path.join(home, "Library", "Application Support", NAME);
  }
  return path.join(process.env.XDG_DATA_HOME ?? path.join(home, ".local", "share"), NAME);
}

function tell(text) {
  process.stderr.write(`${text}\n`);
}

/** Tell whether an error says in words what is wrong. */
function isOurs(error) {
  return error instanceof ChatError || error instanceof SidecarError;
}

/** Ask one question, print the answer, and return it for the conversation. */
async function ask(sidecar, messages, control) {
  const connection = await sidecar.connection();
  const whose = connection.isOwn ? "started here" : "of another start";
  tell(`Server ${connection.url}, process ${connection.pid}, ${whose}`);
  let answer = "";
  try {
    for await (const event of streamChat(connection, { messages, signal: control.signal })) {
      if (event.kind === "reasoning") process.stderr.write(event.text);
      else if (event.kind === "answer") {
        process.stdout.write(event.text);
        answer += event.text;
      } else {
        const speed = event.timings?.predicted_per_second;
        tell(speed ? `\n${speed.toFixed(1)} tokens/s` : `\nEnded: ${event.finishReason}`);
      }
    }
  } finally {
    if (answer) process.stdout.write("\n");
  }
  return answer;
}

async function main() {
  const { values, positionals: command } = parseArgs({
    options: {
      "data-dir": { type: "string" },
      ask: { type: "string", multiple: true },
      "ready-limit-s": { type: "string", default: "180" },
    },
    allowPositionals: true,
  });
  if (command.length === 0) {
    tell("Usage: node example.mjs [--data-dir DIR] [--ask TEXT]… -- COMMAND [ARG…]");
    return 2;
  }
  const dataDir = values["data-dir"] ?? defaultDataDir();
  const readyLimitMs = 1000 * Number(values["ready-limit-s"]);
  const sidecar = new Sidecar({ command, dataDir, readyLimitMs });
  sidecar.on("restarting", (error, attempt) => tell(`${error.problem} Restart ${attempt} …`));
  sidecar.on("failed", (error) => tell(error.message));
  let control = null;
  const leave = async (code) => {
    control?.abort();
    await sidecar.stop();
    process.exit(code);
  };
  process.on("SIGTERM", () => leave(0));
  process.on("SIGINT", () => (control === null ? leave(130) : control.abort()));

  tell("Starting …");
  await sidecar.connection();
  tell("Ready");
  const messages = [];
  const questions = values.ask ?? readline.createInterface({ input: process.stdin });
  for await (const question of questions) {
    if (!question.trim()) continue;
    control = new AbortController();
    try {
      const asked = { role: "user", content: question };
      const answer = await ask(sidecar, [...messages, asked], control);
      messages.push(asked, { role: "assistant", content: answer });
    } catch (error) {
      if (error.name === "AbortError") tell("\nStopped");
      else if (values.ask || !isOurs(error)) throw error;
      else tell(`Error: ${error.message}`);
    }
    control = null;
  }
  await sidecar.stop();
  return 0;
}

main().then(
  (code) => process.exit(code),
  (error) => {
    tell(`Error: ${isOurs(error) ? error.message : error.stack}`);
    process.exit(1);
  },
);
