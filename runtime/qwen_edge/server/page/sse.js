// Server-sent events out of the body of a fetch: the text of each `data:` field, in order.
// Knows nothing of chat. EventSource cannot be used: it neither posts nor sends a key.
// Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream

/**
 * Yield the data of each event of a stream of bytes, wherever its chunks were cut.
 * An event that the stream breaks off in the middle of is left out, as the standard says.
 */
export async function* readEvents(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder(); // keeps the bytes of a character that is not whole yet
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const lines = rest.split(done ? /\r\n|\n|\r/ : /\r\n|\n|\r(?!$)/); // "\n" may still follow
      rest = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (data.length > 0) yield data.join("\n");
          data = [];
        } else if (line === "data" || line.startsWith("data:")) {
          data.push(line.slice(5).replace(/^ /, ""));
        } // the other fields (event, id, retry) and comments mean nothing here
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {}); // whoever stops reading wants no more of it
  }
}
