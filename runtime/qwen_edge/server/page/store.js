// What the browser keeps: conversations and settings, in this browser only. Every conversation has
// an entry of its own, so two tabs do not overwrite each other's. Does not know the page.

const CONVERSATION = "qwen-edge.conversation.";
const SETTINGS = "qwen-edge.settings";
const CURRENT = "qwen-edge.current";
const MAX_TITLE_LENGTH = 60;

export const DEFAULT_SETTINGS = Object.freeze({
  model: "",
  system: "",
  temperature: "", // empty: what the model's makers recommend
  maxTokens: "", // empty: until the model ends or the context is full
  tools: "",
  thinking: true,
});

let reportRefusal = () => {};

/** Have a function called with a text whenever the browser refuses to keep something. */
export function onRefusal(report) {
  reportRefusal = report;
}

/** Do something with the storage; where that is refused, say so and go on without. */
function attempt(action, fallback) {
  try {
    return action();
  } catch (error) {
    const isFull = error.name === "QuotaExceededError";
    reportRefusal(
      isFull
        ? "The browser's storage is full: this conversation is no longer kept. Delete old ones under History."
        : "The browser keeps nothing for this page: the conversation is lost when the tab is closed.",
    );
    return fallback;
  }
}

function parse(text, fallback) {
  try {
    return JSON.parse(text) ?? fallback;
  } catch {
    return fallback; // written by something else, or cut off
  }
}

/** Return the settings; those never chosen have their defaults. */
export function readSettings() {
  const kept = parse(attempt(() => localStorage.getItem(SETTINGS), null), {});
  const settings = { ...DEFAULT_SETTINGS };
  for (const [name, value] of Object.entries(DEFAULT_SETTINGS)) {
    if (typeof kept[name] === typeof value) settings[name] = kept[name];
  }
  return settings;
}

export function writeSettings(settings) {
  attempt(() => localStorage.setItem(SETTINGS, JSON.stringify(settings)));
}

/** Return a conversation with nothing in it; it is kept once it has a message. */
export function newConversation() {
  // Not crypto.randomUUID: it is missing where the page is not served over a secure channel.
  const id = Date.now().toString(36) + Math.random().toString(36).slice(2, 8);
  return { id, changed: Date.now(), messages: [] };
}

/** Return what a conversation is called: the beginning of its first message. */
export function titleOf(conversation) {
  const text = (conversation.messages[0]?.content ?? "").trim().replace(/\s+/g, " ");
  return text.length > MAX_TITLE_LENGTH ? `${text.slice(0, MAX_TITLE_LENGTH)}…` : text || "Empty";
}

function checked(conversation) {
  if (typeof conversation?.id !== "string" || !Array.isArray(conversation.messages)) return null;
  const isMessage = (m) => ["user", "assistant"].includes(m?.role) && typeof m.content === "string";
  return { ...conversation, messages: conversation.messages.filter(isMessage) };
}

export function readConversation(id) {
  return checked(parse(attempt(() => localStorage.getItem(CONVERSATION + id), null), null));
}

/** Keep a conversation; one without messages is forgotten instead. */
export function writeConversation(conversation) {
  if (conversation.messages.length === 0) return removeConversation(conversation.id);
  conversation.changed = Date.now();
  const text = JSON.stringify(conversation);
  attempt(() => localStorage.setItem(CONVERSATION + conversation.id, text));
}

export function removeConversation(id) {
  attempt(() => localStorage.removeItem(CONVERSATION + id));
}

/** Return all that are kept, the one changed last first. */
export function listConversations() {
  const names = attempt(() => Object.keys(localStorage), []);
  return names
    .filter((name) => name.startsWith(CONVERSATION))
    .map((name) => readConversation(name.slice(CONVERSATION.length)))
    .filter((conversation) => conversation !== null)
    .sort((a, b) => b.changed - a.changed);
}

/** Return whether an entry of the storage is this conversation. */
export function isEntryOf(name, conversation) {
  return name === CONVERSATION + conversation.id;
}

/** Return the conversation this tab had open, or else the one changed last, or a new one. */
export function readCurrent() {
  const id = attempt(() => sessionStorage.getItem(CURRENT), null);
  return (id && readConversation(id)) || (!id && listConversations()[0]) || newConversation();
}

export function keepCurrent(conversation) {
  attempt(() => sessionStorage.setItem(CURRENT, conversation.id));
}
