// One message on the page. It shows what a message object holds and says which button was pressed;
// what then happens is chat.js's business.

import { MarkupView } from "./markup.js";

/** Return a copy of a template's only element. */
export function cloneTemplate(id) {
  return document.getElementById(id).content.firstElementChild.cloneNode(true);
}

/** Show text in an element, or hide the element where there is none. */
export function showText(element, text) {
  if (element.textContent !== text) element.textContent = text;
  element.hidden = !text;
}

/** Show a text for people, in which `…` is code, or hide the element where there is none. */
export function showNotice(element, text) {
  const parts = text.split("`");
  const isCode = (index) => index % 2 === 1 && index < parts.length - 1;
  const nodes = parts.map((part, index) => {
    if (!isCode(index)) return index % 2 === 1 ? `\`${part}` : part;
    const code = document.createElement("code");
    code.textContent = part;
    return code;
  });
  element.replaceChildren(...nodes);
  element.hidden = !text;
}

/** Make a text field as high as its text, up to the limit in the style sheet. */
export function fitHeight(field) {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}

/** Return whether a key event means "send": Enter, but not one that ends a word in an IME. */
export function isSending(event) {
  // Safari tells the end of the composition before the key that ended it: 229 is its mark.
  const isComposing = event.isComposing || event.keyCode === 229;
  return event.key === "Enter" && !event.shiftKey && !isComposing;
}

function seconds(ms) {
  return ms < 10_000 ? (ms / 1000).toFixed(1) : String(Math.round(ms / 1000));
}

/** What the user wrote: as it is, and open to change. */
export class UserView {
  constructor(message, { onEdit, onCopy }) {
    this.message = message;
    this.element = cloneTemplate("user-template");
    this.text = this.element.querySelector(".text");
    this.actions = this.element.querySelector(".actions");
    this.text.textContent = message.content;
    this.element.querySelector(".copy").addEventListener("click", onCopy);
    this.element.querySelector(".edit").addEventListener("click", () => this.edit(onEdit));
  }

  /** Put a field in place of the text; `onEdit` gets the changed text. */
  edit(onEdit) {
    const form = cloneTemplate("edit-template");
    const field = form.querySelector("textarea");
    const close = () => {
      form.remove();
      this.text.hidden = this.actions.hidden = false;
      this.element.querySelector(".edit").focus();
    };
    field.value = this.message.content;
    field.addEventListener("input", () => fitHeight(field));
    form.querySelector(".cancel").addEventListener("click", close);
    form.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        close();
      } else if (event.target === field && isSending(event)) {
        event.preventDefault();
        form.requestSubmit();
      }
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (field.value.trim()) onEdit(field.value);
    });
    this.text.hidden = this.actions.hidden = true;
    this.element.append(form);
    fitHeight(field);
    field.focus();
  }
}

/** What the model answers: thinking, text, tool calls, what went wrong, and how fast it was. */
export class AnswerView {
  constructor(message, { onRetry, onCopy, onResults }) {
    this.message = message;
    this.onResults = onResults;
    this.element = cloneTemplate("answer-template");
    const find = (selector) => this.element.querySelector(selector);
    this.thinking = find(".thinking");
    this.summary = find("summary");
    this.reasoning = document.createTextNode("");
    find(".reasoning").append(this.reasoning);
    this.markup = new MarkupView(find(".text"));
    this.calls = find(".calls");
    this.waiting = find(".waiting");
    this.note = find(".note");
    this.problem = find(".problem");
    this.actions = find(".actions");
    this.stats = find(".stats");
    this.retry = find(".retry");
    this.copy = find(".copy");
    this.copy.addEventListener("click", onCopy);
    this.retry.addEventListener("click", onRetry);
    find(".again").addEventListener("click", onRetry);
  }

  /** Show what there is so far; returns the text of paragraphs that are finished by now. */
  update({ isOpen, waiting = "" }) {
    const { message } = this;
    this.showThinking(isOpen);
    const isBegun = message.content || message.reasoning || message.toolCalls.length > 0;
    showText(this.waiting, isOpen && !isBegun ? waiting : "");
    const finished = this.markup.update(message.content, isOpen);
    this.showCalls(isOpen);
    this.element.ariaBusy = String(isOpen);
    this.actions.hidden = isOpen;
    if (!isOpen) this.showEnd();
    return finished;
  }

  showThinking(isOpen) {
    const { reasoning, content, toolCalls, thinkingMs } = this.message;
    this.thinking.hidden = !reasoning;
    if (!reasoning) return;
    const isThinking = isOpen && !content && toolCalls.length === 0;
    const summary = `${isThinking ? "Thinking…" : "Thought for"} ${seconds(thinkingMs)} s`;
    if (this.summary.textContent !== summary) this.summary.textContent = summary;
    this.reasoning.appendData(reasoning.slice(this.reasoning.length));
  }

  showCalls(isOpen) {
    this.message.toolCalls.forEach((call, index) => {
      const box = this.calls.children[index] ?? cloneTemplate("call-template");
      if (!box.isConnected) this.calls.append(box);
      box.querySelector(".name").textContent = call.name;
      box.querySelector(".arguments").textContent = isOpen ? call.arguments : pretty(call.arguments);
      const shown = box.querySelector(".result-shown");
      shown.hidden = call.result === undefined;
      shown.querySelector("pre").textContent = call.result ?? "";
    });
  }

  showEnd() {
    const { message } = this;
    const notes = {
      length: "The answer reached the limit of tokens.",
      stopped: "You stopped the answer.",
      cut: "The page was closed before the answer was complete.",
    };
    showText(this.note, notes[message.finish] ?? "");
    this.problem.hidden = !message.problem;
    showNotice(this.problem.querySelector(".what"), message.problem?.text ?? "");
    showNotice(this.problem.querySelector(".fix"), message.problem?.fix ?? "");
    this.copy.hidden = !message.content;
    showText(this.stats, statsText(message));
    this.stats.title = statsTitle(message);
  }

  /** The last answer can be asked for again, and its tool calls given results. */
  setLast(isLast) {
    this.retry.hidden = !isLast || Boolean(this.message.problem);
    this.problem.querySelector(".again").hidden = !isLast;
    const { toolCalls, problem } = this.message;
    const needsResults = isLast && !problem && toolCalls.some((call) => call.result === undefined);
    for (const field of this.calls.querySelectorAll(".result-field")) field.hidden = !needsResults;
    this.calls.querySelector(".send-results")?.remove();
    if (!needsResults) return;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "send-results";
    button.textContent = toolCalls.length > 1 ? "Send the results" : "Send the result";
    button.addEventListener("click", () => {
      this.onResults(Array.from(this.calls.querySelectorAll(".result"), (field) => field.value));
    });
    this.calls.append(button);
  }
}

function pretty(json) {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json; // models do write JSON that is not quite JSON
  }
}

function statsText({ model, timings, firstTokenMs, numTokens }) {
  const parts = [];
  const perSecond = timings?.predicted_per_second;
  if (perSecond) parts.push(`${perSecond.toFixed(1)} tokens/s`);
  const firstMs = timings?.prompt_ms ?? firstTokenMs;
  if (firstMs != null) parts.push(`first token after ${(firstMs / 1000).toFixed(2)} s`);
  if (numTokens) parts.push(numTokens === 1 ? "1 token" : `${numTokens} tokens`);
  if (parts.length === 0) return "";
  // A number stays on one line with its unit.
  return [model, ...parts.map((part) => part.replace(/ (?=\S+$)/, "\u00a0"))].join(" · ");
}

function statsTitle({ timings, contextTokens, numContextTokens }) {
  const parts = [];
  if (timings?.prompt_n != null) {
    const reused = timings.cache_n ? `, ${timings.cache_n} taken from the cache` : "";
    parts.push(`${timings.prompt_n} prompt tokens read${reused}`);
  }
  if (contextTokens && numContextTokens) {
    parts.push(`${numContextTokens} of ${contextTokens} tokens of context used`);
  }
  return parts.join("; ");
}
