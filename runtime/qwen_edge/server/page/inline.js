// Formatting within a line of text: code, bold, italics, links. Text in, descriptions of nodes out
// ("text" or {tag, attributes, children}); markup.js makes the nodes. Anything that is not clearly
// markup stays the text it was.
//
// While an answer is being written (`isOpen`), what has begun counts as if it ended at the end, and
// what is still undecided is held back, so nothing that was shown has to change its look again.

const MAX_FORMATTED_LENGTH = 20_000; // longer paragraphs are shown as they are
const MAX_DEPTH = 6;
const SPECIAL = /[\\`*_[]|https?:\/\//g;
const ESCAPE = /\\[!-/:-@[-`{-~]/y;
const ADDRESS = /https?:\/\/[^\s<>"'`|\u3000-\u303f\uff00-\uffef]+/y;
const LABEL = /\[((?:[^[\]\\]|\\.|\[[^[\]]*\])*)\]\(/y;
const TARGET = /\s*<?([^\s()<>]*(?:\([^\s()]*\)[^\s()<>]*)*)>?(?:\s+"[^"]*")?\s*\)/y;
const OPEN_TARGET = /\s*<?(\S*)$/y;
const BEGUN_ADDRESS = /^(?:h|ht|htt|https?|https?:|https?:\/|https?:\/\/.*)?$/i;
// At the end of what has come so far: half a marker, or a label that may become a link.
const UNDECIDED_END = /(?:(?<![*_`\\])[*_`\\]+|\\?\[[^[\]\n]{0,80}\]?)$/;

/** Return the descriptions of the nodes of a paragraph's text. */
export function parseInline(text, isOpen = false) {
  if (text.length > MAX_FORMATTED_LENGTH) return [text];
  return parse(isOpen ? text.replace(UNDECIDED_END, "") : text, isOpen, 0);
}

function parse(text, isOpen, depth) {
  if (depth > MAX_DEPTH) return [text];
  const nodes = [];
  const missing = new Set(); // markers known to have no end, so each is looked for once
  let plain = "";
  let at = 0;
  while (at < text.length) {
    SPECIAL.lastIndex = at;
    const special = SPECIAL.exec(text);
    const start = special ? special.index : text.length;
    plain += text.slice(at, start);
    at = start;
    if (!special) break;
    const read = READERS[text[at]];
    const found = read({ text, at, isOpen, depth, missing });
    if (typeof found.node === "string") {
      plain += found.node;
    } else {
      if (plain) nodes.push(plain);
      plain = "";
      nodes.push(found.node);
    }
    at = found.end;
  }
  if (plain) nodes.push(plain);
  return nodes;
}

const READERS = {
  "\\": readEscape,
  "`": readCode,
  "*": readEmphasis,
  _: readEmphasis,
  "[": readLink,
  h: readAddress,
};

function match(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.exec(text);
}

/** Return how often the character at a place is repeated. */
function runLength(text, at) {
  let end = at;
  while (text[end] === text[at]) end += 1;
  return end - at;
}

function literal(text, at, length) {
  return { node: text.slice(at, at + length), end: at + length };
}

function readEscape({ text, at }) {
  return match(ESCAPE, text, at) ? { node: text[at + 1], end: at + 2 } : literal(text, at, 1);
}

function readCode({ text, at, isOpen, missing }) {
  const length = runLength(text, at);
  const start = at + length;
  let close = -1;
  if (!missing.has(`\`${length}`)) {
    for (let place = text.indexOf("`", start); place >= 0; ) {
      const run = runLength(text, place);
      if (run === length) {
        close = place;
        break;
      }
      place = text.indexOf("`", place + run);
    }
  }
  if (close < 0) {
    missing.add(`\`${length}`);
    if (!isOpen || start === text.length) return literal(text, at, length);
  }
  const content = text.slice(start, close < 0 ? text.length : close);
  const bare = /^ .*[^ ].* $/s.test(content) ? content.slice(1, -1) : content;
  const end = close < 0 ? text.length : close + length;
  return { node: { tag: "code", attributes: {}, children: [bare] }, end };
}

const WORD = /[\p{L}\p{N}]/u;
const ASCII_WORD = /[A-Za-z0-9]/;

function canOpen(text, at, length) {
  const before = text[at - 1] ?? " ";
  const after = text[at + length] ?? " ";
  if (/\s/.test(after)) return false;
  if (text[at] === "_") return !WORD.test(before);
  // "2**3" and "5*3" are sums. Scripts without spaces may have markers within a word.
  return !(ASCII_WORD.test(before) && ASCII_WORD.test(after));
}

function findClose(text, from, marker, length) {
  const pattern = marker === "*" ? /\\.|`[^`]*`|\*+/gs : /\\.|`[^`]*`|_+/gs;
  pattern.lastIndex = from;
  for (let run = pattern.exec(text); run; run = pattern.exec(text)) {
    if (run[0][0] !== marker || (run[0].length !== length && run[0].length !== 3)) continue;
    const end = run.index + run[0].length;
    const isAfterSpace = /\s/.test(text[run.index - 1]);
    const isInWord = marker === "_" && WORD.test(text[end] ?? " ");
    if (!isAfterSpace && !isInWord && run.index > from) return end - length;
  }
  return -1;
}

function readEmphasis({ text, at, isOpen, depth, missing }) {
  const marker = text[at];
  const run = runLength(text, at);
  const length = run === 3 ? 2 : run; // "***" opens bold, and italics within
  if (run > 3 || !canOpen(text, at, run)) return literal(text, at, run);
  const start = at + length;
  const close = missing.has(marker + length) ? -1 : findClose(text, start, marker, length);
  if (close < 0) {
    missing.add(marker + length);
    if (!isOpen) return literal(text, at, run);
  }
  const inner = text.slice(start, close < 0 ? text.length : close);
  const tag = length === 2 ? "strong" : "em";
  const children = parse(inner, isOpen && close < 0, depth + 1);
  return { node: { tag, attributes: {}, children }, end: close < 0 ? text.length : close + length };
}

/** Return an address that may be followed, or null: http and https, nothing that runs. */
export function safeAddress(text) {
  if (!/^https?:\/\//i.test(text)) return null;
  try {
    const { protocol, href } = new URL(text);
    return protocol === "http:" || protocol === "https:" ? href : null;
  } catch {
    return null;
  }
}

function link(address, children) {
  if (address === null) return { tag: "a", attributes: {}, children }; // not whole yet
  const attributes = { href: address, title: address, target: "_blank" };
  return { tag: "a", attributes: { ...attributes, rel: "noopener noreferrer" }, children };
}

function readLink({ text, at, isOpen, depth }) {
  const label = match(LABEL, text, at);
  if (!label) return literal(text, at, 1);
  const start = at + label[0].length;
  const target = match(TARGET, text, start);
  if (target) {
    const address = safeAddress(target[1]);
    if (address === null) return literal(text, at, 1);
    const end = start + target[0].length;
    return { node: link(address, parse(label[1], false, depth + 1)), end };
  }
  const begun = isOpen ? match(OPEN_TARGET, text, start) : null;
  if (!begun || !BEGUN_ADDRESS.test(begun[1])) return literal(text, at, 1);
  const isSafe = /^https?:\/\//i.test(begun[1]);
  const node = isSafe ? link(null, parse(label[1], false, depth + 1)) : "";
  return { node, end: text.length };
}

function readAddress({ text, at, isOpen }) {
  const found = match(ADDRESS, text, at);
  if (!found || WORD.test(text[at - 1] ?? " ")) return literal(text, at, 4);
  let address = found[0].replace(/[.,:;!?*_\]}]+$/, "");
  while (address.endsWith(")") && !address.includes("(")) address = address.slice(0, -1);
  const end = at + address.length;
  const href = isOpen && end === text.length ? null : safeAddress(address);
  if (href === null && !isOpen) return literal(text, at, address.length);
  return { node: link(href, [address]), end };
}
