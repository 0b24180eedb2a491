/**
 * Talks to the server: streams the answer to a conversation, token by token.
 *
 *     for await (const event of streamChat(connection, { messages, signal })) {
 *       if (event.kind === "answer") process.stdout.write(event.text);
 *     }
 *
 * The server speaks OpenAI's protocol, so any client of that does too; this one has no dependency.
 * It needs `fetch`, which Node has from version 18 on.
 */

const MAX_EVENT_CHARACTERS = 4 * 1024 * 1024;

/** What the server refused or broke off; `fix` says what to do about it. */
export class ChatError extends Error {
  constructor(problem, { fix = "", code = null, status = null } = {}) {
    super(fix ? `${problem}\n${fix}` : problem);
    this.name = "ChatError";
    this.problem = problem;
    this.fix = fix;
    this.code = code;
    this.status = status;
  }
}

/**
 * Yield the data of server-sent events.
 *
 * @param {AsyncIterable<Uint8Array>} body Bytes, cut anywhere, in the middle of a character too.
 * @returns {AsyncGenerator<string>}
 */
export async function* readEvents(body) {
  const decoder = new TextDecoder();
  let rest = "";
  let data = [];
  for await (const bytes of body) {
    rest += decoder.decode(bytes, { stream: true });
    if (rest.length > MAX_EVENT_CHARACTERS) {
      throw new ChatError("The server sent a line without end.");
    }
    // A "\r" at the end may be the first half of a line's end.
    const lines = rest.split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
      else if (line === "" && data.length > 0) {
        yield data.join("\n");
        data = [];
      }
    }
  }
}

/** Return the ids of the models that the server has. */
export async function listModels({ url, key }) {
  const response = await reach(`${url}/v1/models`, { headers: makeHeaders(key) });
  if (!response.ok) throw await readRefusal(response);
  return (await response.json()).data.map((model) => model.id);
}

/**
 * Yield the answer to a conversation as it comes.
 *
 * @param {{url: string, key: string | null}} connection What `Sidecar.connection` returned.
 * @param {object} request
 * @param {{role: string, content: string}[]} request.messages
 * @param {string} [request.model] The first of the server's where none is given.
 * @param {boolean} [request.thinking] Whether to think first; the model's own choice without it.
 * @param {AbortSignal} [request.signal] Ends the answer: the server stops within one token.
 * @param {object} [request.options] Further fields of the request, such as temperature.
 * @returns {AsyncGenerator<{kind: "reasoning" | "answer", text: string}
 *   | {kind: "done", finishReason: string, usage: object | null, timings: object | null}>}
 * @throws {ChatError} The server refused, or broke off in the middle.
 */
export async function* streamChat(connection, { messages, model, thinking, signal, options = {} }) {
  const { url, key } = connection;
  const request = {
    model: model ?? (await listModels(connection))[0],
    messages,
    stream: true,
    stream_options: { include_usage: true },
    ...(thinking === undefined ? {} : { chat_template_kwargs: { enable_thinking: thinking } }),
    ...options,
  };
  const response = await reach(`${url}/v1/chat/completions`, {
    method: "POST",
    headers: { ...makeHeaders(key), "content-type": "application/json" },
    body: JSON.stringify(request),
    signal,
  });
  if (!response.ok) throw await readRefusal(response);
  const end = { kind: "done", finishReason: null, usage: null, timings: null };
  for await (const data of readEvents(untilBroken(response.body))) {
    if (data === "[DONE]") {
      yield end;
      return;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw makeError(chunk.error, null);
    end.usage = chunk.usage ?? end.usage;
    end.timings = chunk.timings ?? end.timings;
    const choice = chunk.choices?.[0];
    end.finishReason = choice?.finish_reason ?? end.finishReason;
    const thought = choice?.delta?.reasoning_content;
    if (thought) yield { kind: "reasoning", text: thought };
    if (choice?.delta?.content) yield { kind: "answer", text: choice.delta.content };
  }
  throw brokenOff();
}

/** Ask the server; that it is not there is an error like its own. */
async function reach(url, options) {
  try {
    return await fetch(url, options);
  } catch (error) {
    if (!(error instanceof TypeError)) throw error; // it was stopped from here
    throw new ChatError("The server cannot be reached.", { fix: "Ask for a new connection." });
  }
}

/** Yield the bytes of a body; that it breaks off is an error of ours. */
async function* untilBroken(body) {
  try {
    yield* body;
  } catch (error) {
    throw error instanceof TypeError ? brokenOff() : error;
  }
}

function brokenOff() {
  return new ChatError("The server broke off in the middle of the answer.", {
    fix: "Ask again; it is started anew where it crashed.",
  });
}

function makeHeaders(key) {
  return key ? { authorization: `Bearer ${key}` } : {};
}

async function readRefusal(response) {
  const body = await response.json().catch(() => null);
  return makeError(body?.error, response.status);
}

function makeError(error, status) {
  const problem = error?.message ?? `The server answered with status ${status}.`;
  return new ChatError(problem, { fix: error?.fix ?? "", code: error?.code ?? null, status });
}
