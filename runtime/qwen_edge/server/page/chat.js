// The chat page: what happens when. Messages are shown by view.js, kept by store.js and fetched by
// server.js; answer.js knows what a request and an answer are.

import { addChunk, buildRequest, newAnswer, restoreAnswer } from "./answer.js";
import { askForKey, openHistory, openSettings } from "./dialogs.js";
import { follow, goToEnd } from "./scroll.js";
import { ServerError, listModels, readHealth, readKey, streamChat, waitUntilReady } from "./server.js";
import * as store from "./store.js";
import { AnswerView, UserView, fitHeight, isSending, showNotice, showText } from "./view.js";

const MAX_ANNOUNCED = 20;
const COPIED_MS = 1500;

const byId = (id) => document.getElementById(id);
const prompt = byId("prompt");
const list = byId("messages");

let settings = store.DEFAULT_SETTINGS;
let conversation = store.newConversation();
let views = []; // one for each message of the conversation
let models = [];
let isConnected = false; // the models are known, and nothing has gone wrong since
let running = null; // {controller} of the answer being written
let isLeaving = false; // the page is being closed, which breaks connections

// Messages on the page

function open(next) {
  stop();
  conversation = next;
  conversation.messages = next.messages.map((m) => (m.role === "user" ? m : restoreAnswer(m)));
  store.keepCurrent(conversation);
  views = [];
  list.replaceChildren();
  for (const message of conversation.messages) addView(message).update?.({ isOpen: false });
  showWhatIsLast();
  goToEnd();
}

function addView(message) {
  const onCopy = (event) => copy(message.content, event.currentTarget);
  const view =
    message.role === "user"
      ? new UserView(message, { onCopy, onEdit: (text) => edit(message, text) })
      : new AnswerView(message, {
          onCopy,
          onRetry: () => retry(message),
          onResults: (results) => giveResults(message, results),
        });
  views.push(view);
  list.append(view.element);
  return view;
}

/** Take away a message and all that came after it. */
function removeFrom(message) {
  const index = conversation.messages.indexOf(message);
  conversation.messages.length = index;
  for (const view of views.splice(index)) view.element.remove();
}

function showWhatIsLast() {
  byId("welcome").hidden = views.length > 0;
  views.forEach((view, index) => view.setLast?.(index === views.length - 1 && !running));
  document.title = views.length > 0 ? `${store.titleOf(conversation)} · qwen-edge` : "qwen-edge";
}

/** Have a screen reader say something. */
function announce(text) {
  const line = document.createElement("p");
  line.textContent = text;
  byId("announcer").append(line);
  if (byId("announcer").children.length > MAX_ANNOUNCED) byId("announcer").firstChild.remove();
}

/** Let the user write on; on a phone that would open the keyboard over the answer. */
function focusPrompt() {
  if (!matchMedia("(pointer: coarse)").matches) prompt.focus();
}

// What the user does

function send(text) {
  const message = { role: "user", content: text };
  conversation.messages.push(message);
  addView(message);
  focusPrompt();
  answer();
}

/** Send what was typed; while an answer is being written it stays in the field. */
function sendPrompt() {
  if (running || !prompt.value.trim()) return focusPrompt();
  const text = prompt.value;
  prompt.value = "";
  fitHeight(prompt);
  send(text);
}

function edit(message, text) {
  stop();
  removeFrom(message);
  send(text);
}

function retry(message) {
  stop();
  removeFrom(message);
  focusPrompt();
  answer();
}

function giveResults(message, results) {
  message.toolCalls.forEach((call, index) => (call.result = results[index]));
  views.at(-1).update({ isOpen: false });
  focusPrompt();
  answer();
}

function stop() {
  if (!running) return;
  running.controller.abort();
  running = null; // what it still has to put away concerns its own message only
  focusPrompt();
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copyTheOldWay(text); // not a secure context: the page came over plain http from elsewhere
  }
  const label = button.textContent;
  if (label === "Copied") return;
  button.textContent = "Copied";
  announce("Copied");
  setTimeout(() => (button.textContent = label), COPIED_MS);
}

function copyTheOldWay(text) {
  const focused = document.activeElement;
  const field = document.createElement("textarea");
  field.className = "hidden-text";
  field.value = text;
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
  focused?.focus();
}

// Answers

async function answer() {
  const message = newAnswer();
  const before = [...conversation.messages];
  const own = conversation;
  const controller = new AbortController();
  const mine = { controller };
  running = mine;
  own.messages.push(message);
  store.writeConversation(own);
  const view = addView(message);
  const screen = new Screen(view);
  showRunning();
  goToEnd();
  try {
    await receive(message, before, screen, controller.signal);
    if (message.toolCalls.length > 0) announce("The model calls a tool.");
  } catch (error) {
    if (controller.signal.aborted) message.finish = "stopped";
    else if (isLeaving) message.finish = "cut";
    else message.problem = { text: error.message, fix: error.fix ?? "" };
    isConnected &&= controller.signal.aborted;
  }
  screen.close();
  if (own.messages.includes(message)) store.writeConversation(own);
  if (running === mine) running = null;
  showRunning();
  follow();
}

/** Fill an answer from the server: waits while the model loads, asks for a key when needed. */
async function receive(message, before, screen, signal) {
  for (;;) {
    try {
      if (!isConnected) await connect(signal, screen);
      const model = chosenModel();
      message.model = model.id;
      message.contextTokens = model.qwen_edge?.context_tokens;
      const isLoaded = (model.qwen_edge?.state ?? "loaded") === "loaded";
      screen.wait(isLoaded ? "Reading" : "Loading the model");
      const startMs = performance.now();
      for await (const chunk of streamChat(buildRequest(before, settings, model), signal)) {
        addChunk(message, chunk, performance.now() - startMs);
        screen.draw();
      }
      if (!isLoaded) connect(null, null).catch(() => {}); // its device is known now
      return;
    } catch (error) {
      if (error.status === 401 && (await askForKey())) continue;
      if (error.status !== 503 || (await readHealth(signal)).state !== "loading") throw error;
      isConnected = false;
    }
  }
}

/** Draws an answer that is being written: at most once in each frame, and only that answer. */
class Screen {
  #view;
  #frame = 0;
  #waiting = "";
  #sinceMs = performance.now();
  #timer = setInterval(() => this.draw(), 1000); // the seconds of waiting

  constructor(view) {
    this.#view = view;
    this.wait("Waiting for the server");
  }

  /** Say what is being waited for. */
  wait(text) {
    this.#waiting = text;
    this.#sinceMs = performance.now();
    this.draw();
  }

  draw() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      const waited = Math.floor((performance.now() - this.#sinceMs) / 1000);
      const waiting = `${this.#waiting}…${waited > 0 ? ` ${waited} s` : ""}`;
      this.#view.update({ isOpen: true, waiting }).forEach(announce);
      follow();
    });
  }

  close() {
    clearInterval(this.#timer);
    cancelAnimationFrame(this.#frame);
    this.#view.update({ isOpen: false }).forEach(announce);
  }
}

function showRunning() {
  byId("send").hidden = Boolean(running);
  byId("stop").hidden = !running;
  byId("keys").textContent = running ? "Esc stops" : "Enter sends · Shift+Enter: new line";
  showWhatIsLast();
}

// The server and its models

/** Wait for the server, and learn which models it has. */
async function connect(signal, screen) {
  const report = (health) => {
    showState(health);
    screen?.wait(health.state === "loading" ? "Waiting for the model to load" : "Waiting for the server");
  };
  await waitUntilReady(report, signal);
  models = await listModels(signal);
  if (models.length === 0) throw new ServerError("The server has no model.");
  isConnected = true;
  showModels();
}

function showState({ state, text, fix }, needsKey = false) {
  byId("state").hidden = state === "ok";
  showNotice(byId("state-text"), text);
  showNotice(byId("state-fix"), fix);
  byId("enter-key").hidden = !needsKey;
}

function chosenModel() {
  return models.find((model) => model.id === settings.model) ?? models[0];
}

function showModels() {
  const chosen = chosenModel();
  if (!chosen) return;
  const select = byId("model");
  select.replaceChildren(...models.map(({ id }) => new Option(id, id, false, id === chosen.id)));
  select.hidden = models.length < 2;
  showText(byId("model-name"), models.length < 2 ? chosen.id : "");
  const { device, context_tokens: numTokens, thinking } = chosen.qwen_edge ?? {};
  const facts = [device, numTokens && `${numTokens.toLocaleString("en")} tokens`];
  byId("model-facts").textContent = facts.filter(Boolean).join(" · ");
  const box = byId("thinking");
  box.disabled = thinking !== "switchable";
  box.checked = thinking === "always" || (thinking === "switchable" && settings.thinking);
  const notes = { always: "Always thinks", never: "Does not think" };
  byId("thinking-text").textContent = notes[thinking] ?? "Think first";
}

async function start() {
  try {
    await connect(null, null);
  } catch (error) {
    const needsKey = error.status === 401;
    if (needsKey && (await askForKey())) return start();
    showState({ state: "failed", text: error.message, fix: error.fix ?? "" }, needsKey);
  }
}

// Wiring

function change(changed) {
  settings = { ...settings, ...changed };
  store.writeSettings(settings);
  showModels();
}

function listen() {
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    sendPrompt();
  });
  prompt.addEventListener("input", (event) => {
    if (!event.isComposing) fitHeight(prompt); // Safari ends the composition when the size changes
  });
  prompt.addEventListener("compositionend", () => fitHeight(prompt));
  prompt.addEventListener("keydown", (event) => {
    if (!isSending(event)) return;
    event.preventDefault();
    sendPrompt();
  });
  document.addEventListener("keydown", (event) => {
    const isFree = !event.isComposing && !document.querySelector("dialog[open]");
    if (event.key === "Escape" && isFree) stop();
  });
  byId("stop").addEventListener("click", stop);
  byId("new-chat").addEventListener("click", () => {
    open(store.newConversation());
    focusPrompt();
  });
  byId("open-settings").addEventListener("click", () => openSettings(settings, change));
  byId("open-history").addEventListener("click", () => {
    const onOpen = (chosen) => chosen.id !== conversation.id && open(chosen);
    openHistory(conversation, { onOpen, onDelete: forget });
  });
  byId("thinking").addEventListener("change", (event) => change({ thinking: event.target.checked }));
  byId("model").addEventListener("change", (event) => change({ model: event.target.value }));
  byId("enter-key").addEventListener("click", async () => {
    if (await askForKey()) start();
  });
  list.addEventListener("click", ({ target }) => {
    if (!target.classList.contains("copy-code")) return;
    copy(target.closest("figure").querySelector("code").textContent, target);
  });
  byId("storage-note").querySelector("button").addEventListener("click", () => {
    byId("storage-note").hidden = true;
  });
  // Closing a phone's browser may give no later sign than this.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden && running) store.writeConversation(conversation);
  });
  for (const name of ["beforeunload", "pagehide"]) {
    addEventListener(name, () => (isLeaving = true));
  }
  addEventListener("pageshow", () => (isLeaving = false));
  addEventListener("storage", ({ key }) => {
    if (running || !store.isEntryOf(key, conversation)) return;
    open(store.readConversation(conversation.id) ?? store.newConversation());
  });
}

function forget(id) {
  if (id !== conversation.id) return;
  conversation.messages = []; // an answer that is still stopping must not write it again
  open(store.newConversation());
}

store.onRefusal((text) => {
  byId("storage-note").querySelector("p").textContent = text;
  byId("storage-note").hidden = false;
});
byId("host").textContent = location.host;
readKey();
settings = store.readSettings();
listen();
open(store.readCurrent());
focusPrompt();
start();
