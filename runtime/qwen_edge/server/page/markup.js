// The part of Markdown that models write, as nodes of the page. Nodes are made with createElement
// and text with text nodes: an answer can never become HTML. inline.js knows what is in a line.
//
// An answer that grows is not read again from its beginning: blocks that another block follows are
// finished and left alone, and of the last one only what has changed is touched.

import { parseInline } from "./inline.js";

const FENCE = /^(\s*)(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)(?:\s+#+)?\s*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}>\s?/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(\s+)(.*)$/s;
const ROW = /^\s*\|.*\|\s*$/;
const ROW_OF_DASHES = /^[\s|:-]+$/;
// The last line, as far as it has come, when it may still become one thing or another.
const UNDECIDED =
  /^\s*(?:[-*+_](?:\s*[-*+_])*|#{1,6}|\d{1,9}[.)]?|`{1,2}|~{1,2}|(?:`{3,}|~{3,})[^`]*|>+|\|.*)?\s*$/s;
const MAX_DEPTH = 8;

function element(tag, children, attributes = {}) {
  return { tag, attributes, children };
}

/** Return the lines of a text; the last is `isCut` where more of it may follow. */
function linesOf(text, isOpen) {
  let start = 0;
  const lines = text.split("\n").map((line) => {
    const entry = { text: line.replace(/\r$/, ""), start, isCut: false, kind: null };
    start += line.length + 1;
    return entry;
  });
  lines.at(-1).isCut = isOpen;
  return lines;
}

/** Return a line of a block within a block, without what the outer one begins with. */
function innerLine(line, text) {
  return { ...line, text, kind: null };
}

/** Say what a line begins. */
function kindOf(line) {
  line.kind ??= readKind(line); // asked for many times
  return line.kind;
}

function readKind(line) {
  const { text } = line;
  if (line.isCut && UNDECIDED.test(text)) return "undecided";
  if (!text.trim()) return "blank";
  if (FENCE.test(text)) return "fence";
  if (HEADING.test(text)) return "heading";
  if (RULE.test(text)) return "rule";
  if (QUOTE.test(text)) return "quote";
  if (ITEM.test(text)) return "item";
  if (ROW.test(text)) return "row";
  return "text";
}

const READERS = {
  fence: readFence,
  heading: readHeading,
  rule: (lines, at) => ({ node: element("hr", []), next: at + 1 }),
  quote: readQuote,
  item: readList,
  row: readTable,
  text: readParagraph,
};

/** Return the blocks of lines as {start, node}: where in the text, and a description. */
function parseBlocks(lines, depth = 0) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    const kind = depth > MAX_DEPTH ? "text" : kindOf(lines[at]);
    if (kind === "undecided") break; // only ever the last line
    if (kind === "blank") {
      at += 1;
      continue;
    }
    const { node, next } = READERS[kind](lines, at, depth);
    // Text runs as its first letters do; what is within a block runs as the block.
    if (depth === 0) node.attributes.dir ??= "auto";
    blocks.push({ start: lines[at].start, node });
    at = next;
  }
  return blocks;
}

function nodesOf(lines, depth) {
  return parseBlocks(lines, depth + 1).map((block) => block.node);
}

/** Return whether a block that ended before line `next` may still go on. */
function mayGoOn(lines, next) {
  if (next >= lines.length) return lines.at(-1).isCut;
  return lines[next].isCut && kindOf(lines[next]) === "undecided";
}

function readParagraph(lines, at) {
  let next = at + 1;
  while (next < lines.length && kindOf(lines[next]) === "text") next += 1;
  const text = lines.slice(at, next).map((line) => line.text.trimStart());
  const nodes = parseInline(text.join("\n"), mayGoOn(lines, next));
  return { node: element("p", nodes), next };
}

function readHeading(lines, at) {
  const [, marks, text] = HEADING.exec(lines[at].text);
  const tag = `h${Math.min(marks.length + 2, 6)}`; // the page has its own h1 and h2
  const nodes = parseInline(text, lines[at].isCut);
  return { node: element(tag, nodes), next: at + 1 };
}

function readFence(lines, at) {
  const [, indent, fence, info] = FENCE.exec(lines[at].text);
  const isEnd = (text) => {
    const run = text.trim();
    return run.length >= fence.length && run === fence[0].repeat(run.length);
  };
  let end = at + 1;
  while (end < lines.length && !isEnd(lines[end].text)) end += 1;
  let body = lines.slice(at + 1, end);
  const last = body.at(-1);
  // Half a closing fence, or the line break before it, must not show and vanish again.
  if (last?.isCut && /^\s*(`*|~*)$/.test(last.text)) body = body.slice(0, -1);
  const outdent = new RegExp(`^\\s{0,${indent.length}}`);
  const code = body.map((line) => line.text.replace(outdent, "")).join("\n");
  return { node: codeBlock(code, info.trim().split(/\s/)[0]), next: end + 1 };
}

function codeBlock(code, language) {
  const caption = element("figcaption", [
    element("span", [language || "code"]),
    element("button", ["Copy"], { type: "button", class: "copy-code quiet" }),
  ]);
  const pre = element("pre", [element("code", [code])], { tabindex: "0" });
  return element("figure", [caption, pre], { class: "code", dir: "ltr" });
}

function readQuote(lines, at, depth) {
  let next = at;
  const inner = [];
  while (next < lines.length && kindOf(lines[next]) === "quote") {
    inner.push(innerLine(lines[next], lines[next].text.replace(QUOTE, "")));
    next += 1;
  }
  return { node: element("blockquote", nodesOf(inner, depth)), next };
}

function cellsOf(text) {
  const cells = text.trim().slice(1, -1).split(/(?<!\\)\|/);
  return cells.map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function readTable(lines, at) {
  let next = at;
  while (next < lines.length && kindOf(lines[next]) === "row") next += 1;
  const rows = lines.slice(at, next).map((line) => line.text);
  const hasHead = rows.length > 1 && ROW_OF_DASHES.test(rows[1]);
  const row = (text, tag) => {
    return element("tr", cellsOf(text).map((cell) => element(tag, parseInline(cell))));
  };
  const body = rows.slice(hasHead ? 2 : 0).map((text) => row(text, "td"));
  const parts = [element("thead", hasHead ? [row(rows[0], "th")] : []), element("tbody", body)];
  return { node: element("div", [element("table", parts)], { class: "wide", tabindex: "0" }), next };
}

/** Return the line number of the next line that is not blank, from a blank one on. */
function afterBlank(lines, at) {
  while (at < lines.length && !lines[at].text.trim()) at += 1;
  return at;
}

function indentOf(text) {
  return text.length - text.trimStart().length;
}

function readList(lines, at, depth) {
  const first = ITEM.exec(lines[at].text);
  const isOrdered = /\d/.test(first[2]);
  const isItem = (line) => {
    const item = kindOf(line) === "item" && ITEM.exec(line.text);
    const isNear = item && item[1].length < first[1].length + 2;
    return isNear && /\d/.test(item[2]) === isOrdered ? item : null;
  };
  const items = [];
  let inner = 0; // how far the text of the item is indented
  let next = at;
  while (next < lines.length) {
    const line = lines[next];
    const item = isItem(line);
    const kind = kindOf(line);
    if (item) {
      inner = item[1].length + item[2].length + (item[3].length > 4 ? 1 : item[3].length);
      items.push([innerLine(line, item[4])]);
    } else if (kind === "blank") {
      const later = lines[afterBlank(lines, next)];
      const goesOn = later && (isItem(later) || indentOf(later.text) > first[1].length + 1);
      if (!goesOn || kindOf(later) === "undecided") break;
      items.at(-1).push(line);
    } else if (indentOf(line.text) > first[1].length + 1) {
      const outdent = Math.min(inner, indentOf(line.text));
      items.at(-1).push(innerLine(line, line.text.slice(outdent)));
    } else if (kind === "text" && lines[next - 1].text.trim()) {
      items.at(-1).push(line); // a line that goes on without being indented
    } else {
      break;
    }
    next += 1;
  }
  const entries = items.map((part) => element("li", nodesOf(part, depth)));
  const number = Number.parseInt(first[2], 10);
  const attributes = isOrdered && number !== 1 ? { start: String(number) } : {};
  return { node: element(isOrdered ? "ol" : "ul", entries, attributes), next };
}

/** Make the children of a node, from a place on, those described; keep what is already right. */
export function reconcile(parent, nodes, from = 0) {
  nodes.forEach((node, index) => {
    const old = parent.childNodes[from + index];
    if (typeof node === "string") {
      if (old?.nodeType !== Node.TEXT_NODE) place(parent, document.createTextNode(node), old);
      else if (!node.startsWith(old.data)) old.data = node;
      else if (node.length > old.length) old.appendData(node.slice(old.length));
      return;
    }
    let target = old;
    if (old?.localName !== node.tag) {
      target = document.createElement(node.tag);
      place(parent, target, old);
    }
    for (const name of target.getAttributeNames()) {
      if (!(name in node.attributes)) target.removeAttribute(name);
    }
    for (const [name, value] of Object.entries(node.attributes)) {
      if (target.getAttribute(name) !== value) target.setAttribute(name, value);
    }
    reconcile(target, node.children);
  });
  while (parent.childNodes.length > from + nodes.length) parent.lastChild.remove();
}

function place(parent, node, old) {
  if (old) old.replaceWith(node);
  else parent.append(node);
}

/** A text that grows, shown within an element. */
export class MarkupView {
  #root;
  #finishedLength = 0; // of the text
  #finishedCount = 0; // of the blocks

  constructor(root) {
    this.#root = root;
  }

  /**
   * Show the text so far, which must begin with what was shown before.
   * Returns the text of the blocks that were finished by this, for reading aloud.
   */
  update(text, isOpen) {
    const blocks = parseBlocks(linesOf(text.slice(this.#finishedLength), isOpen));
    reconcile(this.#root, blocks.map((block) => block.node), this.#finishedCount);
    const numFinished = isOpen ? Math.max(blocks.length - 1, 0) : blocks.length;
    const first = this.#finishedCount;
    if (isOpen && numFinished > 0) {
      this.#finishedLength += blocks[numFinished].start;
    } else if (!isOpen) {
      this.#finishedLength = text.length;
    }
    this.#finishedCount += numFinished;
    const finished = Array.from(this.#root.children).slice(first, first + numFinished);
    return finished.map((block) => (block.querySelector(":scope > pre") ?? block).textContent);
  }
}
