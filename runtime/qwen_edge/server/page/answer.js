// An answer as data: what is asked for it, and what the chunks of the stream add to it.
// Knows neither the page nor the network.

const NO_RESULT = "No result was given.";

/** Return an answer with nothing in it yet. */
export function newAnswer() {
  return {
    role: "assistant",
    content: "",
    reasoning: "",
    thinkingMs: 0,
    toolCalls: [], // {id, name, arguments, result}: the result is what the user gave, if anything
    finish: null, // "stop", "length", "tool_calls", "stopped" by the user, or "cut" by a closed page
    problem: null, // {text, fix}
    model: "",
    timings: null,
    firstTokenMs: null,
  };
}

/** Return an answer that was kept, whole again. */
export function restoreAnswer(kept) {
  const answer = { ...newAnswer(), ...kept };
  if (!Array.isArray(answer.toolCalls)) answer.toolCalls = [];
  if (answer.finish === null && answer.problem === null) answer.finish = "cut";
  return answer;
}

/** Return the body of the request for the next answer. Empty settings are left to the server. */
export function buildRequest(messages, settings, model) {
  const request = {
    model: model.id,
    messages: [],
    stream: true,
    stream_options: { include_usage: true },
  };
  if (settings.system.trim()) request.messages.push({ role: "system", content: settings.system });
  for (const message of messages) request.messages.push(...requestMessages(message));
  if (settings.temperature !== "") request.temperature = Number(settings.temperature);
  if (settings.maxTokens !== "") request.max_completion_tokens = Number(settings.maxTokens);
  if (settings.tools.trim()) request.tools = JSON.parse(settings.tools);
  if (model.qwen_edge?.thinking === "switchable") {
    request.chat_template_kwargs = { enable_thinking: settings.thinking };
  }
  return request;
}

// What was thought is not sent back: Qwen3's template leaves it out anyway.
function requestMessages({ role, content, toolCalls }) {
  if (role === "user") return [{ role, content }];
  if (toolCalls.length === 0) return content ? [{ role, content }] : [];
  const calls = toolCalls.map(({ id, name, arguments: text }) => ({
    id,
    type: "function",
    function: { name, arguments: text },
  }));
  const results = toolCalls.map(({ id, result }) => ({
    role: "tool",
    tool_call_id: id,
    content: result ?? NO_RESULT,
  }));
  return [{ role, content, tool_calls: calls }, ...results];
}

/** Add a chunk of the stream to an answer; `sinceMs` counts from the request. */
export function addChunk(answer, chunk, sinceMs) {
  const choice = chunk.choices?.[0];
  const delta = choice?.delta ?? {};
  const reasoning = delta.reasoning_content ?? delta.reasoning ?? "";
  const content = delta.content ?? "";
  const calls = delta.tool_calls ?? [];
  if (reasoning || content || calls.length > 0) answer.firstTokenMs ??= sinceMs;
  const isThinking = !answer.content && answer.toolCalls.length === 0;
  if (isThinking && (reasoning || answer.reasoning)) {
    answer.thinkingMs = sinceMs - answer.firstTokenMs;
  }
  answer.reasoning += reasoning;
  answer.content += content;
  for (const call of calls) addCall(answer.toolCalls, call);
  answer.finish = choice?.finish_reason ?? answer.finish;
  answer.timings = chunk.timings ?? answer.timings;
  answer.numTokens = chunk.usage?.completion_tokens ?? answer.numTokens;
  answer.numContextTokens = chunk.usage?.total_tokens ?? answer.numContextTokens;
}

function addCall(calls, delta) {
  const index = Math.min(delta.index ?? calls.length, calls.length);
  calls[index] ??= { id: "", name: "", arguments: "" };
  const call = calls[index];
  call.id ||= delta.id ?? "";
  call.name ||= delta.function?.name ?? "";
  const more = delta.function?.arguments ?? "";
  call.arguments += typeof more === "string" ? more : JSON.stringify(more);
}
