/**
 * The errors of this library.
 *
 *     VitascopeError
 *     ├── APIError
 *     │   ├── APIConnectionError            the server was not reached, or the connection broke
 *     │   │   └── APITimeoutError           it did not answer in time
 *     │   └── APIStatusError                it answered with an error: status, code, param, requestId
 *     │       ├── InvalidRequestError       400, 402, 405, 408, 409, 413, 415, 422, 451
 *     │       │   └── ModerationBlockedError    code moderation_blocked (400) or output_blocked (451)
 *     │       ├── AuthenticationError       401
 *     │       ├── PermissionDeniedError     403
 *     │       ├── NotFoundError             404, 410 (also: video_not_ready, video_failed, video_expired)
 *     │       ├── RateLimitError            429
 *     │       └── ServerError               500 and above
 *     └── WebhookVerificationError          a delivery that the server did not sign, or not now
 *
 * A wrong argument or a missing key is a VitascopeError as well. A call that its own signal aborts rejects with the
 * signal's reason, as `fetch` does.
 */

/** Anything that this library throws. */
export class VitascopeError extends Error {
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** A call failed. */
export class APIError extends VitascopeError {}

/** The server was not reached, or the connection broke; `cause` is what the platform said. */
export class APIConnectionError extends APIError {}

/** The server did not answer in time. */
export class APITimeoutError extends APIConnectionError {}

/** What an error answer says of itself. */
export interface ErrorDetails {
  /** HTTP status. */
  readonly status: number;
  /** Stable name of what went wrong; null when the answer was not the server's own. */
  readonly code: string | null;
  /** The field at fault; null when it is none. */
  readonly param: string | null;
  /** Tell it to whoever runs the server; null when the answer named none. */
  readonly requestId: string | null;
  /** How long the server asks to wait, in milliseconds; null when it does not say. */
  readonly retryAfterMs: number | null;
  /** Whether the server says that the same request may be sent again; null when it does not say. */
  readonly shouldRetry: boolean | null;
}

/** The server answered with an error. */
export class APIStatusError extends APIError implements ErrorDetails {
  readonly status: number;
  readonly code: string | null;
  readonly param: string | null;
  readonly requestId: string | null;
  readonly retryAfterMs: number | null;
  readonly shouldRetry: boolean | null;

  constructor(message: string, details: ErrorDetails) {
    super(message);
    this.status = details.status;
    this.code = details.code;
    this.param = details.param;
    this.requestId = details.requestId;
    this.retryAfterMs = details.retryAfterMs;
    this.shouldRetry = details.shouldRetry;
  }
}

/** The request cannot be carried out as written; `param` names the field. */
export class InvalidRequestError extends APIStatusError {}

/** The safety check refused the prompt or a picture, or withholds the finished video. */
export class ModerationBlockedError extends InvalidRequestError {}

/** The API key is missing or not valid. */
export class AuthenticationError extends APIStatusError {}

/** The key is valid, but this is not allowed. */
export class PermissionDeniedError extends APIStatusError {}

/** There is no such thing, or it has no file (yet): see `code`. */
export class NotFoundError extends APIStatusError {}

/** A rate, quota or budget is used up. */
export class RateLimitError extends APIStatusError {}

/** The server cannot serve right now. */
export class ServerError extends APIStatusError {}

/** A webhook delivery that the server did not sign, or not within the last five minutes. */
export class WebhookVerificationError extends VitascopeError {}

const KINDS: Readonly<Record<number, typeof APIStatusError>> = {
  401: AuthenticationError,
  403: PermissionDeniedError,
  404: NotFoundError,
  410: NotFoundError,
  429: RateLimitError,
};

/** Return the error for an answer; a body that is not the envelope still gives a useful one. */
export function statusError(body: unknown, said: Omit<ErrorDetails, "code" | "param">): APIStatusError {
  const envelope = field(body, "error");
  const code = text(field(envelope, "code"));
  const message = text(field(envelope, "message")) || `The server answered with status ${said.status}.`;
  const usual = KINDS[said.status] ?? (said.status >= 500 ? ServerError : InvalidRequestError);
  const isBlocked = code === "moderation_blocked" || code === "output_blocked";
  const Kind = isBlocked ? ModerationBlockedError : usual;
  return new Kind(message, { ...said, code, param: text(field(envelope, "param")) });
}

function field(value: unknown, name: string): unknown {
  return typeof value === "object" && value !== null ? (value as Record<string, unknown>)[name] : undefined;
}

function text(value: unknown): string | null {
  return typeof value === "string" ? value : null;
}
