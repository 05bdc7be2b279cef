/** Requests with errors, time limits and retries. `fetch` is the one seam: pass another to replace the network. */

import {
  APIConnectionError,
  APIError,
  APIStatusError,
  APITimeoutError,
  NotFoundError,
  statusError,
  VitascopeError,
} from "./errors.js";

const RETRIED_STATUS: ReadonlySet<number> = new Set([408, 429, 500, 502, 503, 504]);
const BACKOFF_MS = 250;
const MAX_BACKOFF_MS = 8000;
/** What a timer can hold: a longer one would end at once. */
export const MAX_TIMER_MS = 2 ** 31 - 1;
/** A server that asks for more patience is told to the caller instead. */
const MAX_RETRY_AFTER_MS = 120_000;

/** What replaces the platform's `fetch`. */
export type Fetch = (url: string, init: RequestInit) => Promise<Response>;

/** One request. */
export interface Call {
  readonly method?: string;
  readonly query?: Readonly<Record<string, string | number | undefined>>;
  readonly headers?: Readonly<Record<string, string>>;
  /** Sent as JSON unless it is a form. */
  readonly body?: FormData | object | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Requests to one server with one key. */
export class Http {
  readonly baseUrl: string;
  readonly timeoutMs: number;
  readonly maxRetries: number;
  readonly #apiKey: string;
  readonly #fetch: Fetch;

  constructor(baseUrl: string, apiKey: string, timeoutMs: number, maxRetries: number, fetch: Fetch) {
    this.baseUrl = baseUrl;
    this.timeoutMs = timeoutMs;
    this.maxRetries = maxRetries;
    this.#apiKey = apiKey;
    this.#fetch = fetch;
  }

  /**
   * Send a request and return the answer's JSON and headers. Another server may answer with JSON as well: what has no
   * such `field` is not from ours.
   *
   * Repeats it after any transient failure: what creates something carries a key, by which the server knows it again. A
   * DELETE whose first answer was lost and that then finds nothing has done its work.
   */
  async json<T>(path: string, field: keyof T, call: Call = {}): Promise<{ data: T; headers: Headers }> {
    let mayBeDone = false;
    return this.repeat(async () => {
      try {
        return await this.#json<T>(path, field, call);
      } catch (error) {
        const isDone = call.method === "DELETE" && mayBeDone && error instanceof NotFoundError;
        if (isDone) return { data: {} as T, headers: new Headers() };
        mayBeDone ||= !isUnsent(error);
        throw error;
      }
    }, call.signal);
  }

  async #json<T>(path: string, field: keyof T, call: Call): Promise<{ data: T; headers: Headers }> {
    const opened = await this.open(path, call, this.timeoutMs);
    try {
      const text = await opened.text();
      try {
        const data = JSON.parse(text) as T;
        if (data[field] === undefined) throw new TypeError(`There is no ${String(field)} in it.`);
        return { data, headers: opened.answer.headers };
      } catch (cause) {
        throw new APIError(`${this.baseUrl} did not answer as Vitascope does; is baseUrl right?`, { cause });
      }
    } finally {
      opened.close();
    }
  }

  /** Send a request once; the body of its answer is unread. `silenceMs`: how long the server may say nothing. */
  async open(path: string, call: Call, silenceMs: number): Promise<Opened> {
    const headers = { ...call.headers, Authorization: `Bearer ${this.#apiKey}` };
    return open(this.#fetch, `${this.baseUrl}${path}`, { ...call, headers }, silenceMs);
  }

  /** Run until it succeeds, as often as `maxRetries` and the server allow. */
  async repeat<T>(run: () => Promise<T>, signal: AbortSignal | undefined): Promise<T> {
    for (let attempt = 0; ; attempt++) {
      try {
        return await run();
      } catch (error) {
        if (attempt >= this.maxRetries || !mayRepeat(error, signal)) throw error;
        await pause(backoffMs(attempt, BACKOFF_MS, error), signal);
      }
    }
  }
}

/** An answer whose body is unread, and the watch over it. Close it whatever happens. */
export class Opened {
  readonly answer: Response;
  readonly #watch: Watch;

  constructor(answer: Response, watch: Watch) {
    this.answer = answer;
    this.#watch = watch;
  }

  /** Read the rest as text. */
  text(): Promise<string> {
    return this.#watch.during(this.answer.text());
  }

  /** Read the rest piece by piece. What the reader does in between is no silence of the server. */
  async *chunks(): AsyncGenerator<Uint8Array, void, undefined> {
    const reader = this.answer.body?.getReader();
    while (reader !== undefined) {
      const { done, value } = await this.#watch.during(reader.read());
      if (done) return;
      yield value;
    }
  }

  /** Close the connection unless it was read to its end. */
  close(): void {
    this.#watch.end();
  }
}

/** Send one request; an error answer is thrown. */
export async function open(fetch: Fetch, url: string, call: Call, silenceMs: number): Promise<Opened> {
  const given = Object.entries(call.query ?? {}).filter(([, value]) => value !== undefined);
  const query = new URLSearchParams(given.map(([name, value]) => [name, String(value)])).toString();
  const headers = headersOf(call);
  const method = call.method ?? "GET";
  const init: RequestInit = { method, headers, redirect: method === "GET" ? "follow" : "manual" };
  if (call.body instanceof FormData) {
    init.body = call.body; // its boundary is the platform's
  } else if (call.body !== undefined) {
    init.body = JSON.stringify(call.body);
    headers.set("Content-Type", "application/json");
  }
  const watch = new Watch(silenceMs, call.signal);
  try {
    const separator = url.includes("?") ? "&" : "?";
    const sent = fetch(query === "" ? url : `${url}${separator}${query}`, { ...init, signal: watch.signal });
    const opened = new Opened(await watch.during(sent), watch);
    const elsewhere = redirectOf(opened.answer, url);
    if (elsewhere !== null) throw new APIError(`The server redirects this ${method}${elsewhere}; is baseUrl right?`);
    if (!opened.answer.ok) throw await errorOf(opened);
    return opened;
  } catch (error) {
    watch.end();
    throw error;
  }
}

/** Whether the same request may succeed the next time, and neither server nor caller say otherwise. */
export function mayRepeat(
  error: unknown,
  signal: AbortSignal | undefined,
): error is APIConnectionError | APIStatusError {
  if (signal?.aborted) return false;
  if (error instanceof APIConnectionError) return true;
  if (!(error instanceof APIStatusError) || (error.retryAfterMs ?? 0) > MAX_RETRY_AFTER_MS) return false;
  return error.shouldRetry ?? RETRIED_STATUS.has(error.status);
}

/** Whether there was no connection that a request could go out on, where the platform says so: Node does, no browser. */
function isUnsent(error: unknown): boolean {
  if (!(error instanceof APIConnectionError)) return false;
  const inner = error.cause instanceof Error ? error.cause.cause : undefined;
  const each: unknown[] = inner instanceof AggregateError ? inner.errors : [inner]; // one for each address of the host
  return each.every((one) => {
    const { code, syscall } = (one ?? {}) as { code?: unknown; syscall?: unknown };
    return syscall === "connect" || syscall === "getaddrinfo" || code === "UND_ERR_CONNECT_TIMEOUT";
  });
}

/** Return how long to wait: `baseMs` doubling to 8 s, less up to a quarter, and no less than the server asks for. */
export function backoffMs(attempt: number, baseMs: number, error: unknown): number {
  const ownMs = Math.min(baseMs * 2 ** attempt, MAX_BACKOFF_MS) * (1 - Math.random() / 4);
  return Math.max(ownMs, error instanceof APIStatusError ? (error.retryAfterMs ?? 0) : 0);
}

/** Wait; rejects with the signal's reason when it is aborted. */
export function pause(waitMs: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(signal.reason);
    const stop = () => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, waitMs);
    signal?.addEventListener("abort", stop, { once: true });
  });
}

/** Ends a request when its caller says so, or when the server says nothing for too long. */
class Watch {
  readonly #controller = new AbortController();
  readonly #silenceMs: number;
  readonly #caller: AbortSignal | undefined;
  readonly #stop = () => this.#controller.abort();

  constructor(silenceMs: number, caller: AbortSignal | undefined) {
    this.#silenceMs = silenceMs;
    this.#caller = caller;
    if (caller?.aborted) this.#stop();
    else caller?.addEventListener("abort", this.#stop, { once: true });
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** Wait for what the server does next. Throws the caller's reason, or an APIConnectionError. */
  async during<T>(next: Promise<T>): Promise<T> {
    let isLate = false;
    const timer = setTimeout(() => {
      isLate = true;
      this.#stop();
    }, Math.min(this.#silenceMs, MAX_TIMER_MS));
    try {
      return await next;
    } catch (cause) {
      if (this.#caller?.aborted) throw this.#caller.reason;
      if (isLate) throw new APITimeoutError(`The server said nothing for ${this.#silenceMs / 1000} s.`, { cause });
      throw new APIConnectionError(`Cannot reach the server, or the connection broke: ${reasonOf(cause)}`, { cause });
    } finally {
      clearTimeout(timer);
    }
  }

  end(): void {
    this.#caller?.removeEventListener("abort", this.#stop);
    this.#stop();
  }
}

/** Return where a redirect leads that was not followed, "" where a browser does not tell; null: it is none. */
function redirectOf(answer: Response, url: string): string | null {
  if (answer.type === "opaqueredirect") return "";
  const location = answer.headers.get("location");
  if (answer.status < 300 || answer.status > 399 || location === null) return null;
  try {
    return ` to ${new URL(location, url).origin}`;
  } catch {
    return "";
  }
}

async function errorOf(opened: Opened): Promise<APIStatusError> {
  const { status, headers } = opened.answer;
  const text = await opened.text();
  let body: unknown = null;
  try {
    body = JSON.parse(text);
  } catch {
    // not ours: a proxy's page, or nothing
  }
  const said = headers.get("x-should-retry");
  const shouldRetry = said === "true" ? true : said === "false" ? false : null;
  const requestId = headers.get("x-request-id");
  return statusError(body, { status, requestId, retryAfterMs: retryAfterMs(headers), shouldRetry });
}

function headersOf(call: Call): Headers {
  for (const value of Object.values(call.headers ?? {})) {
    // Platforms differ in what they refuse, when, and whether they repeat it
    if (!/^[ -~]*$/.test(value)) throw new VitascopeError("An id or a key holds characters that no header can.");
  }
  return new Headers(call.headers);
}

/** Return what `retry-after-ms` or `retry-after` (seconds, or a date) ask for; null: neither can be read. */
function retryAfterMs(headers: Headers): number | null {
  const milliseconds = headers.get("retry-after-ms") ?? "";
  if (/^[0-9]+(\.[0-9]+)?$/.test(milliseconds)) return Number(milliseconds);
  const value = headers.get("retry-after") ?? "";
  if (/^[0-9]+(\.[0-9]+)?$/.test(value)) return Number(value) * 1000;
  const atMs = Date.parse(value);
  return Number.isNaN(atMs) ? null : Math.max(0, atMs - Date.now());
}

/** Return what the platform says; Node hides it one level below "fetch failed". */
function reasonOf(cause: unknown): string {
  const inner = cause instanceof Error && cause.cause instanceof Error ? cause.cause : cause;
  return inner instanceof Error ? inner.message || inner.name : String(inner);
}
