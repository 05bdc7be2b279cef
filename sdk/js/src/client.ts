/** The client. */

import { APIError, APIStatusError, APITimeoutError, VitascopeError } from "./errors.js";
import { type Fetch, Http, MAX_TIMER_MS, mayRepeat, pause } from "./http.js";
import {
  advance,
  type CreateParams,
  type EditParams,
  type Estimate,
  type ExtendParams,
  isFinished,
  type Model,
  type Progress,
  progressOf,
  type RemixParams,
  UNKNOWN,
  type Video,
  type VideoEvent,
  type VideoPage,
} from "./objects.js";
import { EVENT_STREAM, follow, SILENCE_MS, type StreamOptions } from "./stream.js";

const DEFAULT_TIMEOUT_MS = 60_000;
const DEFAULT_MAX_RETRIES = 4;
const WAIT_MS = 3_600_000;
/** How long `wait` goes without events before it asks instead. */
const POLL_INSTEAD_MS = 30_000;
const POLL_MS = 1000;

export interface ClientOptions {
  /** Address of the gateway, with or without `/v1`. */
  baseUrl: string;
  /** Space around it, as files of keys have it, is no part of it. */
  apiKey: string;
  /** How long the server may say nothing, in milliseconds; default 60,000. */
  timeoutMs?: number | undefined;
  /** How often a call is repeated after a transient failure; default 4. */
  maxRetries?: number | undefined;
  /** Replaces the platform's `fetch`, for tests and proxies. */
  fetch?: Fetch | undefined;
}

export interface CallOptions {
  /** Ends the call: it rejects with the signal's reason. */
  signal?: AbortSignal | undefined;
}

export interface MakeOptions extends CallOptions {
  /**
   * The same request with the same key makes one video, for 24 hours, from whatever process it is sent; default: a
   * key of this call.
   */
  idempotencyKey?: string | undefined;
}

export interface ListOptions extends CallOptions {
  /** Id of the video before the first one that is wanted. */
  after?: string | undefined;
  /** Videos of a page, 1 to 100; default 20. */
  limit?: number | undefined;
  /** By creation; default desc. */
  order?: "asc" | "desc" | undefined;
}

export interface WaitOptions extends CallOptions {
  /** Called with every event, and when there are none, every time that it asks. What it throws ends the wait. */
  onProgress?: ((progress: Progress) => void) | undefined;
  /** Default: an hour, in milliseconds. */
  timeoutMs?: number | undefined;
}

export interface DownloadOptions extends CallOptions {
  /** Default: video. */
  variant?: "video" | "thumbnail" | "spritesheet" | undefined;
}

/** A client of one server. It holds no connection open but that of a call, so there is nothing to close. */
export class Vitascope {
  readonly baseUrl: string;
  readonly videos: Videos;
  readonly models: Models;

  constructor(options: ClientOptions) {
    this.baseUrl = addressOf(options.baseUrl);
    const apiKey = (options.apiKey ?? "").trim();
    if (apiKey === "") throw new VitascopeError("apiKey is missing.");
    if (!/^[!-~]+$/.test(apiKey)) {
      throw new VitascopeError("apiKey cannot be used: a key is printable ASCII without spaces.");
    }
    const { timeoutMs = DEFAULT_TIMEOUT_MS, maxRetries = DEFAULT_MAX_RETRIES } = options;
    const send: Fetch = options.fetch ?? ((url, init) => fetch(url, init));
    const http = new Http(this.baseUrl, apiKey, timeoutMs, maxRetries, send);
    this.videos = new Videos(http);
    this.models = new Models(http);
  }
}

/** `client.models`. */
export class Models {
  readonly #http: Http;

  constructor(http: Http) {
    this.#http = http;
  }

  /** List the models of the server. */
  async list(options: CallOptions = {}): Promise<readonly Model[]> {
    return (await this.#http.json<{ data: Model[] }>("/v1/models", "data", options)).data.data;
  }
}

/** `client.videos`. */
export class Videos {
  readonly #http: Http;

  constructor(http: Http) {
    this.#http = http;
  }

  /**
   * Ask for a video. It is repeated when the answer is lost, and makes one video even so.
   *
   * @throws ModerationBlockedError The prompt was refused. InvalidRequestError: `param` names the field.
   */
  create(params: CreateParams, options: MakeOptions = {}): Promise<Video> {
    return this.#make("/v1/videos", params, options);
  }

  /** Draw over one of your videos by another prompt: what moves where stays, what it looks like changes. */
  async remix(videoId: string, params: RemixParams, options: MakeOptions = {}): Promise<Video> {
    return this.#make(`${pathOf(videoId)}/remix`, params, options);
  }

  /** Draw over a video by another prompt, as `remix` does. */
  edit(params: EditParams, options: MakeOptions = {}): Promise<Video> {
    return this.#make("/v1/videos/edits", params, options);
  }

  /** Continue a video; the new one is both, one after the other. */
  extend(params: ExtendParams, options: MakeOptions = {}): Promise<Video> {
    return this.#make("/v1/videos/extensions", params, options);
  }

  /**
   * Make a new video from the request of one that has ended: same seed, same parameters.
   *
   * @throws InvalidRequestError Code `not_finished`, or `model_changed`: it would be another video.
   */
  async retry(videoId: string, options: MakeOptions = {}): Promise<Video> {
    return this.#make(`${pathOf(videoId)}/retry`, undefined, options);
  }

  /** Say what `create` would make, cost and wait for. Nothing is made. */
  async estimate(params: CreateParams, options: CallOptions = {}): Promise<Estimate> {
    const call = { ...options, method: "POST", body: bodyOf(params) };
    return (await this.#http.json<Estimate>("/v1/videos/estimate", "price", call)).data;
  }

  /** List what each model can do here, and what it costs. */
  async models(options: CallOptions = {}): Promise<readonly Model[]> {
    return (await this.#http.json<{ data: Model[] }>("/v1/videos/models", "data", options)).data.data;
  }

  /** Return one video as it is now. */
  async retrieve(videoId: string, options: CallOptions = {}): Promise<Video> {
    return (await this.#http.json<Video>(pathOf(videoId), "id", options)).data;
  }

  /** Yield your videos, page after page. */
  async *list(options: ListOptions = {}): AsyncGenerator<Video, void, undefined> {
    for (let after = options.after; ; ) {
      const page = await this.page({ ...options, after });
      yield* page.data;
      if (!page.has_more || page.last_id === null) return;
      after = page.last_id;
    }
  }

  /** Return one page; the next one is that after its `last_id`, while it `has_more`. */
  async page(options: ListOptions = {}): Promise<VideoPage> {
    const { signal, after, limit, order } = options;
    return (await this.#http.json<VideoPage>("/v1/videos", "data", { signal, query: { after, limit, order } })).data;
  }

  /** Delete a video; one that is still being made is cancelled first. */
  async delete(videoId: string, options: CallOptions = {}): Promise<void> {
    await this.#http.json<{ deleted: boolean }>(pathOf(videoId), "deleted", { ...options, method: "DELETE" });
  }

  /** Cancel a video that is not finished; a finished one stays as it is. */
  async cancel(videoId: string, options: CallOptions = {}): Promise<Video> {
    return (await this.#http.json<Video>(`${pathOf(videoId)}/cancel`, "id", { ...options, method: "POST" })).data;
  }

  /**
   * Follow a video until it is finished: `for await (const event of client.videos.stream(id))`.
   *
   * Reconnects by itself, without gap or duplicate, and throws when the server stays away for two minutes, or says that
   * there is no such video or no such key. Leaving the loop closes the connection.
   */
  stream(videoId: string, options: StreamOptions = {}): AsyncGenerator<VideoEvent, void, undefined> {
    const path = `${pathOf(videoId)}/events`;
    const ask = (lastEventId: string) => {
      const resume = lastEventId === "" ? {} : { "Last-Event-ID": lastEventId };
      return this.#http.open(path, { headers: { ...EVENT_STREAM, ...resume }, signal: options.signal }, SILENCE_MS);
    };
    return follow(ask, options);
  }

  /**
   * Return the video once it is finished, well or not: look at its `status`. Follows its events, and asks from time to
   * time where these do not come through.
   *
   * @throws APITimeoutError It is not finished after `timeoutMs`. It goes on.
   */
  async wait(videoId: string, options: WaitOptions = {}): Promise<Video> {
    const timeoutMs = options.timeoutMs ?? WAIT_MS;
    const late = new APITimeoutError(`Video ${videoId} is not finished after ${timeoutMs / 1000} s. It goes on.`);
    const ends = new AbortController();
    const stop = () => ends.abort(options.signal?.reason);
    const timer = setTimeout(() => ends.abort(late), Math.min(timeoutMs, MAX_TIMER_MS));
    if (options.signal?.aborted) stop();
    else options.signal?.addEventListener("abort", stop, { once: true });
    try {
      const progress = await this.#follow(videoId, ends.signal, options.onProgress);
      return await this.#poll(videoId, ends.signal, isFinished(progress) ? undefined : options.onProgress);
    } finally {
      clearTimeout(timer);
      options.signal?.removeEventListener("abort", stop);
    }
  }

  /** Read events until the last one, or until they do not come; return how far it was then. */
  async #follow(videoId: string, signal: AbortSignal, onProgress: WaitOptions["onProgress"]): Promise<Progress> {
    let progress = UNKNOWN;
    const events = this.stream(videoId, { signal, giveUpMs: POLL_INSTEAD_MS });
    for (;;) {
      let next: IteratorResult<VideoEvent, void>;
      try {
        next = await events.next();
      } catch (error) {
        const isNoStream = error instanceof APIError && !(error instanceof APIStatusError) && !signal.aborted;
        if (isNoStream || mayRepeat(error, signal)) return progress;
        throw error;
      }
      if (next.done) return progress;
      const now = advance(progress, next.value);
      try {
        if (now !== progress) onProgress?.(now);
      } catch (error) {
        await events.return();
        throw error;
      }
      progress = now;
    }
  }

  /** Ask until it is finished, as often as the server wants to be asked. */
  async #poll(videoId: string, signal: AbortSignal, onProgress: WaitOptions["onProgress"]): Promise<Video> {
    for (;;) {
      let waitMs = POLL_MS;
      try {
        const { data: video, headers } = await this.#http.json<Video>(pathOf(videoId), "id", { signal });
        onProgress?.(progressOf(video));
        if (isFinished(video)) return video;
        waitMs = Number(headers.get("openai-poll-after-ms")) || POLL_MS;
      } catch (error) {
        if (!mayRepeat(error, signal)) throw error;
        waitMs = Math.max(waitMs, error instanceof APIStatusError ? (error.retryAfterMs ?? 0) : 0);
      }
      await pause(waitMs, signal);
    }
  }

  /**
   * Return a file of a video; `await blob.arrayBuffer()` has its bytes, `URL.createObjectURL(blob)` shows it in a page.
   *
   * @throws NotFoundError `code` says why there is no file: video_not_ready, video_failed, video_expired.
   */
  download(videoId: string, options: DownloadOptions = {}): Promise<Blob> {
    return this.downloadTo(
      videoId,
      async (chunks, type) => {
        const parts: BlobPart[] = [];
        for await (const chunk of chunks) parts.push(chunk as BlobPart);
        return new Blob(parts, { type });
      },
      options,
    );
  }

  /**
   * Hand a file of a video to `receive` while it arrives, and return what that returns. When the connection breaks,
   * `receive` is called again and gets the file from its first byte. Throws as `download`.
   */
  async downloadTo<T>(
    videoId: string,
    receive: (chunks: AsyncIterable<Uint8Array>, mediaType: string) => Promise<T>,
    options: DownloadOptions = {},
  ): Promise<T> {
    const path = `${pathOf(videoId)}/content`;
    const call = { query: { variant: options.variant ?? "video" }, signal: options.signal };
    return this.#http.repeat(async () => {
      const opened = await this.#http.open(path, call, this.#http.timeoutMs);
      try {
        return await receive(opened.chunks(), opened.answer.headers.get("content-type") ?? "");
      } finally {
        opened.close();
      }
    }, options.signal);
  }

  /** Have a video made, once however often that is sent. */
  async #make(path: string, params: object | undefined, options: MakeOptions): Promise<Video> {
    const headers = { "Idempotency-Key": options.idempotencyKey ?? newKey() };
    const body = params === undefined ? undefined : bodyOf(params);
    const call = { method: "POST", headers, body, signal: options.signal };
    return (await this.#http.json<Video>(path, "id", call)).data;
  }
}

/** Return what says these fields: JSON, or a form when there is a file among them. */
function bodyOf(params: object): FormData | object {
  const given = Object.entries(params).filter(([, value]) => value !== undefined && value !== null);
  for (const [name, value] of given) {
    if (typeof value === "number" && !Number.isFinite(value)) throw new VitascopeError(`${name} is not a number.`);
  }
  if (!given.some(([, value]) => fileOf(value) !== null)) return Object.fromEntries(given);
  const form = new FormData();
  for (const [name, value] of given) {
    const file = fileOf(value);
    if (file !== null) form.append(name, file);
    else if (name === "video" && typeof value === "object") form.append("video[id]", value.id);
    else form.append(name, typeof value === "object" ? JSON.stringify(value) : String(value));
  }
  return form;
}

function fileOf(value: unknown): Blob | null {
  if (value instanceof Blob) return value;
  return value instanceof ArrayBuffer || value instanceof Uint8Array ? new Blob([value as BlobPart]) : null;
}

/** A key that nobody else has. (`randomUUID` is not there on pages without TLS.) */
function newKey(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function addressOf(baseUrl: string): string {
  if (!/^https?:\/\/./i.test(baseUrl ?? "") || !canParse(baseUrl)) {
    const got = JSON.stringify(baseUrl);
    throw new VitascopeError(`baseUrl must be an address such as http://127.0.0.1:8000; got ${got}.`);
  }
  return baseUrl.replace(/\/+$/, "").replace(/\/v1$/, "");
}

function canParse(url: string): boolean {
  try {
    return new URL(url).host !== "";
  } catch {
    return false;
  }
}

function pathOf(videoId: string): string {
  if (typeof videoId !== "string" || ["", ".", ".."].includes(videoId)) {
    throw new VitascopeError(`${JSON.stringify(videoId)} is not the id of a video.`);
  }
  return `/v1/videos/${encodeURIComponent(videoId)}`;
}
