// Server-sent events.

/**
 * An incremental parser (WHATWG HTML, 9.2.6). It accepts bytes in pieces of any size and returns complete messages.
 * `id` is the last id of the stream; `hasId` says whether the message itself has one.
 */
export class SseParser {
  #utf8 = new TextDecoder(); // keeps an incomplete character for the next piece and drops a leading BOM
  #line = "";
  #afterCr = false; // the last piece ended with CR; if the next starts with LF, that LF belongs to the CR
  #data = [];
  #event = "";
  #hasId = false;
  lastEventId = "";

  push(bytes) {
    let text = this.#utf8.decode(bytes, { stream: true });
    if (this.#afterCr && text) {
      text = text.replace(/^\n/, "");
      this.#afterCr = false;
    }
    const messages = [];
    const lines = text.split(/\r\n|\r|\n/);
    if (text.endsWith("\r")) this.#afterCr = true;
    lines[0] = this.#line + lines[0];
    this.#line = lines.pop();
    for (const line of lines) {
      if (line) this.#field(line);
      else this.#dispatch(messages);
    }
    return messages;
  }

  #field(line) {
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") this.#data.push(value);
    else if (name === "event") this.#event = value;
    else if (name === "id" && !value.includes("\0")) {
      this.lastEventId = value;
      this.#hasId = true;
    }
  }

  #dispatch(messages) {
    if (this.#data.length) {
      const event = this.#event || "message";
      messages.push({ event, data: this.#data.join("\n"), id: this.lastEventId, hasId: this.#hasId });
    }
    this.#data = [];
    this.#event = "";
    this.#hasId = false;
  }
}
