/** Server-sent events: bytes in, events out (WHATWG HTML, 9.2.5 and 9.2.6). */

/** One event as it came. */
export interface ServerSentEvent {
  /** What its `id` field said; null: it had none, and the last id stays what it is. */
  readonly id: string | null;
  /** What its `event` field said; "message" when it had none. */
  readonly type: string;
  /** Its `data` lines, joined by line feeds. */
  readonly data: string;
}

/** Reads one stream. Chunks may end anywhere, within a character too; what is cut off at the end is no event. */
export class SseParser {
  /** Where the stream goes on; null until the server says so. */
  lastEventId: string | null = null;
  /** How long to wait before the stream is asked for again, in milliseconds; null until the server says so. */
  retryMs: number | null = null;

  #decoder = new TextDecoder(); // drops a byte order mark
  #line = "";
  #isAfterCr = false;
  #id: string | null = null;
  #type = "";
  #data: string[] = [];

  /** Take the next bytes and return the events that they complete. */
  push(chunk: Uint8Array): ServerSentEvent[] {
    const text = this.#decoder.decode(chunk, { stream: true });
    const events: ServerSentEvent[] = [];
    let start = 0;
    for (let at = 0; at < text.length; at++) {
      const character = text.charCodeAt(at);
      if (this.#isAfterCr) {
        this.#isAfterCr = false;
        if (character === LF) {
          start = at + 1; // the second half of a line end
          continue;
        }
      }
      if (character === LF || character === CR) {
        this.#take(this.#line + text.slice(start, at), events);
        this.#line = "";
        this.#isAfterCr = character === CR;
        start = at + 1;
      }
    }
    this.#line += text.slice(start);
    return events;
  }

  #take(line: string, events: ServerSentEvent[]): void {
    if (line === "") {
      if (this.#data.length > 0) {
        events.push({ id: this.#id, type: this.#type || "message", data: this.#data.join("\n") });
      }
      this.lastEventId = this.#id ?? this.lastEventId; // of an event without data, too
      this.#id = null;
      this.#type = "";
      this.#data = [];
      return;
    }
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon); // "" is a comment
    const rest = colon < 0 ? "" : line.slice(colon + 1);
    const value = rest.startsWith(" ") ? rest.slice(1) : rest;
    if (name === "data") this.#data.push(value);
    else if (name === "event") this.#type = value;
    else if (name === "id" && !value.includes("\0")) this.#id = value;
    else if (name === "retry" && /^[0-9]{1,9}$/.test(value)) this.retryMs = Number(value);
  }
}

const LF = 10;
const CR = 13;
