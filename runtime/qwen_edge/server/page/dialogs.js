// The three dialogs: settings, history, key. Each is opened by a function; native <dialog> keeps
// the focus inside, closes with Esc and gives the focus back.

import { hasKey, keepKey } from "./server.js";
import * as store from "./store.js";
import { cloneTemplate } from "./view.js";

const byId = (id) => document.getElementById(id);

for (const dialog of document.querySelectorAll("dialog")) {
  dialog.querySelector(".cancel").addEventListener("click", () => dialog.close());
}

const KEY = /^[\x21-\x7e]+$/; // nothing else can be sent in a header
const FIELDS = { system: "system", temperature: "temperature", maxTokens: "max-tokens", tools: "tools" };

/** Return what is wrong with the JSON of tools, or "" when nothing is. */
function toolsProblem(text) {
  if (!text.trim()) return "";
  try {
    if (Array.isArray(JSON.parse(text))) return "";
    return "The tools must be a list: […].";
  } catch (error) {
    return `The tools are not JSON. ${error.message}`;
  }
}

/** Let the user change the settings; `onSave` gets the new ones. */
export function openSettings(settings, onSave) {
  const dialog = byId("settings");
  for (const [name, id] of Object.entries(FIELDS)) byId(id).value = settings[name];
  byId("tools-problem").textContent = "";
  byId("settings-form").onsubmit = (event) => {
    event.preventDefault();
    const problem = toolsProblem(byId("tools").value);
    byId("tools-problem").textContent = problem;
    byId("tools").ariaInvalid = String(Boolean(problem));
    if (problem) return byId("tools").focus();
    const changed = { ...settings };
    for (const [name, id] of Object.entries(FIELDS)) changed[name] = byId(id).value;
    dialog.close();
    onSave(changed);
  };
  dialog.showModal();
}

/** Do what a button says at the second press only. The windows of some apps lack confirm(). */
function askTwice(button, label, question, action) {
  const calm = () => (button.textContent = label);
  button.onclick = () => {
    const isAsked = button.textContent === question;
    if (isAsked) calm();
    else button.textContent = question;
    if (isAsked) action();
  };
  button.onblur = calm;
  calm();
}

function when(ms) {
  return new Date(ms).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
}

/** Show the conversations that are kept: `onOpen` gets the one chosen, `onDelete` an id. */
export function openHistory(current, { onOpen, onDelete }) {
  const dialog = byId("history");
  const list = byId("conversations");
  const show = () => {
    const kept = store.listConversations();
    list.replaceChildren(...kept.map(entryOf));
    byId("no-conversations").hidden = kept.length > 0;
    byId("delete-all").hidden = kept.length === 0;
  };
  const remove = (ids) => {
    for (const id of ids) {
      onDelete(id);
      store.removeConversation(id);
    }
    show();
    dialog.querySelector(".cancel").focus();
  };
  const entryOf = (conversation) => {
    const entry = cloneTemplate("conversation-template");
    const title = store.titleOf(conversation);
    const open = entry.querySelector(".open");
    entry.querySelector(".title").textContent = title;
    entry.querySelector("time").textContent = when(conversation.changed);
    if (conversation.id === current.id) open.ariaCurrent = "true";
    open.addEventListener("click", () => {
      dialog.close();
      onOpen(conversation);
    });
    const deletion = entry.querySelector(".delete");
    deletion.title = `Delete: ${title}`;
    askTwice(deletion, "Delete", "Really?", () => remove([conversation.id]));
    return entry;
  };
  askTwice(byId("delete-all"), "Delete all", "Really delete all?", () => {
    const ids = store.listConversations().map((conversation) => conversation.id);
    remove(ids);
  });
  show();
  dialog.showModal();
}

let keyQuestion = null;

/** Ask for the key; true once there is a new one, false when the user would rather not. */
export function askForKey() {
  keyQuestion ??= new Promise((resolve) => {
    const dialog = byId("key");
    let isGiven = false;
    byId("key-problem").textContent = hasKey() ? "The server did not accept the key." : "";
    byId("key-input").value = "";
    byId("key-form").onsubmit = (event) => {
      event.preventDefault();
      const key = byId("key-input").value.trim();
      if (!KEY.test(key)) {
        byId("key-problem").textContent = "A key has only Latin letters, digits and signs.";
        return byId("key-input").focus();
      }
      isGiven = true;
      keepKey(key);
      dialog.close();
    };
    dialog.onclose = () => {
      keyQuestion = null;
      resolve(isGiven);
    };
    dialog.showModal();
  });
  return keyQuestion;
}
