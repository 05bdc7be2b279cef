/**
 * Client of a Vitascope server, for Node and browsers.
 *
 *     import { Vitascope } from "vitascope";
 *
 *     const client = new Vitascope({ baseUrl: "http://127.0.0.1:8000", apiKey: "vs_…" });
 *     const video = await client.videos.create({ prompt: "a red circle moving right on a black background" });
 *     for await (const event of client.videos.stream(video.id)) console.log(event.type, event.data);
 *     const file = await client.videos.download(video.id);
 */

export {
  type CallOptions,
  type ClientOptions,
  type DownloadOptions,
  type ListOptions,
  type MakeOptions,
  type Models,
  type Videos,
  Vitascope,
  type WaitOptions,
} from "./client.js";
export {
  APIConnectionError,
  APIError,
  APIStatusError,
  APITimeoutError,
  AuthenticationError,
  type ErrorDetails,
  InvalidRequestError,
  ModerationBlockedError,
  NotFoundError,
  PermissionDeniedError,
  RateLimitError,
  ServerError,
  VitascopeError,
  WebhookVerificationError,
} from "./errors.js";
export type { Fetch } from "./http.js";
export {
  type Cost,
  type CreateParams,
  type EditParams,
  type Estimate,
  type ExtendParams,
  isFinished,
  isLast,
  type Model,
  type Price,
  type Progress,
  type RemixParams,
  type Steps,
  type Upload,
  type Video,
  type VideoError,
  type VideoEvent,
  type VideoPage,
  type VideoParams,
  type VideoStatus,
} from "./objects.js";
export { type ServerSentEvent, SseParser } from "./sse.js";
export { type StreamOptions, streamFromUrl } from "./stream.js";
export { verifyWebhook, type WebhookEvent, type WebhookHeaders } from "./webhooks.js";
