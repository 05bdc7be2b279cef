/** The events of one video: read, and resumed by themselves. */

import { APIConnectionError, APIError, APITimeoutError, VitascopeError } from "./errors.js";
import { backoffMs, type Fetch, mayRepeat, open, type Opened, pause } from "./http.js";
import { isLast, type VideoEvent } from "./objects.js";
import { type ServerSentEvent, SseParser } from "./sse.js";

/** Three missed heartbeats: the connection is dead. */
export const SILENCE_MS = 45_000;
const RECONNECT_MS = 500;
const GIVE_UP_MS = 120_000;

export interface StreamOptions {
  /** Begin after this event; not given: with the first. */
  lastEventId?: string | null | undefined;
  /** Ends the stream: the loop throws the signal's reason. */
  signal?: AbortSignal | undefined;
  /** How long the server may stay away, in milliseconds. */
  giveUpMs?: number | undefined;
}

/** Asks for the stream after an event; "": from the first. */
type Ask = (lastEventId: string) => Promise<Opened>;

/**
 * Follow a video until it is finished by an `events_url` that carries a token: no API key is needed, so that a browser
 * may do it. Otherwise as `videos.stream`; an expired token is a PermissionDeniedError with the code `link_expired`.
 */
export function streamFromUrl(
  eventsUrl: string,
  options: StreamOptions & { fetch?: Fetch | undefined } = {},
): AsyncGenerator<VideoEvent, void, undefined> {
  if (!/^https?:\/\//i.test(eventsUrl)) throw new VitascopeError("An events_url begins with http:// or https://.");
  const send = options.fetch ?? ((url, init) => fetch(url, init));
  // In the query, where no browser has to ask the server first whether it may be sent
  const ask: Ask = (lastEventId) => {
    const query = { last_event_id: lastEventId || undefined };
    return open(send, eventsUrl, { query, headers: EVENT_STREAM, signal: options.signal }, SILENCE_MS);
  };
  return follow(ask, options);
}

export const EVENT_STREAM = { Accept: "text/event-stream" };

/** Yield events until the last one; a broken connection is resumed after the last event that was yielded. */
export async function* follow(ask: Ask, options: StreamOptions): AsyncGenerator<VideoEvent, void, undefined> {
  const giveUpMs = options.giveUpMs ?? GIVE_UP_MS;
  let lastId = options.lastEventId ?? "";
  let reconnectMs = RECONNECT_MS;
  let failures = 0;
  let heardAtMs = Date.now();
  let awaySinceMs: number | null = null;
  for (;;) {
    let failure: APIError;
    try {
      const opened = await ask(lastId);
      try {
        if (opened.answer.status === 204) return;
        check(opened.answer);
        const parser = new SseParser();
        for await (const chunk of opened.chunks()) {
          awaySinceMs = null;
          for (const sent of parser.push(chunk)) {
            failures = 0;
            const event = read(sent);
            yield event;
            if (isLast(event)) return;
          }
          lastId = parser.lastEventId ?? lastId;
          reconnectMs = parser.retryMs ?? reconnectMs;
          heardAtMs = Date.now(); // after the yield: what the caller does in between is no silence
        }
      } finally {
        opened.close();
      }
      failure = new APIConnectionError("The server ended the stream before the video was finished.");
    } catch (error) {
      if (!mayRepeat(error, options.signal)) throw error;
      failure = error;
    }
    // From the first failure on; silence, from when it began
    awaySinceMs ??= failure instanceof APITimeoutError ? heardAtMs : Date.now();
    if (Date.now() - awaySinceMs > giveUpMs) throw failure;
    await pause(backoffMs(failures++, reconnectMs, failure), options.signal);
  }
}

function check(answer: Response): void {
  const type = answer.headers.get("content-type") ?? "";
  const where = answer.url.replace(/\?.*/, ""); // there may be a token behind it
  if (!type.startsWith("text/event-stream")) throw new APIError(`${where} does not answer with events.`);
}

function read(sent: ServerSentEvent): VideoEvent {
  try {
    return { id: sent.id || null, type: sent.type, data: JSON.parse(sent.data) } as VideoEvent;
  } catch (cause) {
    throw new APIError("The data of an event is not JSON.", { cause });
  }
}
