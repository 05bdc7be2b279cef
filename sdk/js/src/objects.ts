/** What the server answers with, under the names of the API. Fields that a newer server adds are there, untyped. */

/** Why a video was not made. */
export interface VideoError {
  /** Stable: `cancelled`, `expired`, `output_blocked`, `poison`, `internal`, … */
  readonly code: string;
  /** For people. */
  readonly message: string;
}

/** What a video costs at list price. */
export interface Cost {
  readonly currency: "USD";
  /** When it was accepted; null: that was long ago. */
  readonly estimated: number | null;
  /** 0 unless it was completed; null as long as it is under way. */
  readonly charged: number | null;
  /** What of `estimated` is not charged; null as long as it is under way. */
  readonly refunded: number | null;
}

export type VideoStatus = "queued" | "in_progress" | "completed" | "failed";

/** One video job. */
export interface Video {
  readonly id: string;
  readonly object: "video";
  /** A cancelled video is `failed`, with the error's code `cancelled`. */
  readonly status: VideoStatus;
  /** What happens right now: queued, denoising, decoding, postprocessing, cancelled, … */
  readonly phase: string;
  /** Percent; 100 only when it is completed. */
  readonly progress: number;
  /** Unix seconds. */
  readonly created_at: number;
  /** Unix seconds; null unless it is completed. */
  readonly completed_at: number | null;
  /** When its files are deleted, Unix seconds; null: not yet known, or never. */
  readonly expires_at: number | null;
  readonly model: string;
  readonly prompt: string;
  /** Length of the clip, a number as text: "4". Of an extension: of all of it. */
  readonly seconds: string;
  /** Width and height in pixels: "1280x720". */
  readonly size: string;
  readonly seed: number;
  readonly fps: number;
  readonly num_frames: number;
  /** The video that this one changes or continues; null: none. */
  readonly remixed_from_video_id: string | null;
  /** The video whose request this one repeats; null: of none. */
  readonly retry_of: string | null;
  /** Null unless `status` is failed. */
  readonly error: VideoError | null;
  /** Videos in front of it; null when it does not wait, or nobody knows. */
  readonly queue_position: number | null;
  /** Seconds until it is expected to be finished; null when unknown. */
  readonly eta_seconds: number | null;
  /** The same as a time, Unix seconds; null when unknown. */
  readonly estimated_completion_at: number | null;
  /** The step of the pipeline that it is in: generate, finish; null before and after. */
  readonly stage: string | null;
  readonly steps_done: number;
  /** 0 until it is known. */
  readonly steps_total: number;
  /** How often the work was begun. */
  readonly attempt: number;
  readonly metadata: Readonly<Record<string, string>>;
  readonly service_class: string;
  /** Order among your own waiting videos: lower is sooner. */
  readonly priority: number;
  /** When it fails with the code `expired` unless finished, Unix seconds; null: never. */
  readonly deadline_at: number | null;
  readonly cost: Cost;
  /** Busy seconds of its devices so far: all of them, all attempts. */
  readonly gpu_seconds: number;
  /** Seconds of denoising and decoding; null until both are done. */
  readonly inference_time_s: number | null;
  /** Seconds of what is done, all attempts: queue, load, encode, denoise, decode, upload, postprocess. */
  readonly stage_durations: Readonly<Record<string, number>>;
  /** MiB of its device at most; null until it is known. */
  readonly peak_memory_mb: number | null;
  /** A small WebP of what it is going to look like; opens for an hour without a key. Null: there is none now. */
  readonly preview_url: string | null;
  /** Its server-sent events; opens them for an hour without a key (`streamFromUrl`), so whoever has it follows. */
  readonly events_url: string;
  /** The same events over a WebSocket, likewise; null where the server has none. */
  readonly websocket_url: string | null;
}

/** One page of videos. */
export interface VideoPage {
  readonly data: readonly Video[];
  /** Give it as `after` to get the next page; null: the page is empty. */
  readonly last_id: string | null;
  readonly has_more: boolean;
}

/** What finished video costs. */
export interface Price {
  readonly currency: "USD";
  readonly per_second: number;
}

/** One model and what it can do. */
export interface Model {
  readonly id: string;
  readonly title: string;
  readonly description: string;
  readonly licence: string;
  readonly sizes: readonly string[];
  readonly seconds: readonly string[];
  /** text_to_video, image_to_video, keyframes, negative_prompt, … */
  readonly capabilities: readonly string[];
  readonly solvers: readonly string[];
  readonly temporal_attention: readonly string[];
  readonly fps: number;
  readonly defaults: Readonly<Record<string, string | number>>;
  readonly limits: Readonly<Record<string, unknown>>;
  readonly price: Price;
}

/** A file: a `Blob` (a `File` is one), or its bytes. */
export type Upload = Blob | Uint8Array | ArrayBuffer;

/** What a request for a video may say. What is not given is the model's default. */
export interface VideoParams {
  /** What the video shows. */
  prompt: string;
  model?: string | undefined;
  seconds?: string | number | undefined;
  /** Width and height in pixels: "1280x720"; or both of these: */
  size?: string | undefined;
  width?: number | undefined;
  height?: number | undefined;
  /** 0 to 2³²-1; not given: a random one, which the answer tells. */
  seed?: number | undefined;
  negative_prompt?: string | undefined;
  num_inference_steps?: number | undefined;
  guidance_scale?: number | undefined;
  solver?: string | undefined;
  temporal_attention?: "full" | "causal" | "window" | undefined;
  /** Up to 16 strings of your own. */
  metadata?: Readonly<Record<string, string>> | undefined;
  /** Seconds until it fails with the code `expired` unless it is finished. */
  deadline_s?: number | undefined;
  /** -100 to 100, lower is sooner, among your own waiting videos. */
  priority?: number | undefined;
  /** Whichever your plan includes. */
  service_class?: "realtime" | "standard" | "batch" | undefined;
  /** Told of its end; `verifyWebhook` reads what arrives there. */
  webhook_url?: string | undefined;
  /** What it is told of; default: all. */
  webhook_events?: readonly ("video.completed" | "video.failed")[] | undefined;
}

/** A video from text, or from pictures where the model can do that. */
export interface CreateParams extends VideoParams {
  /** The picture that the video begins with (PNG, JPEG or WebP, at most 10 MiB): a file, a data URL or an https URL. */
  input_reference?: Upload | string | undefined;
  /** The one that it ends with; needs `input_reference`. */
  last_frame?: Upload | string | undefined;
}

/** One of your videos under another prompt. What is not given is as it was there. */
export interface RemixParams extends VideoParams {
  /** How much may change, 0 to 1; default 0.75. */
  strength?: number | undefined;
}

/** A video under another prompt: one of yours by its id, or a file. */
export interface EditParams extends RemixParams {
  video: string | { readonly id: string } | Upload;
}

/** A video that goes on: one of yours by its id, or a file. */
export interface ExtendParams extends VideoParams {
  video: string | { readonly id: string } | Upload;
  /** Of what is added, its first frames being the last ones of the video before. */
  seconds: string | number;
}

/** What a request would make, cost and wait for, if it were sent now. */
export interface Estimate {
  readonly model: string;
  readonly seconds: string;
  readonly size: string;
  readonly num_frames: number;
  readonly fps: number;
  readonly num_inference_steps: number;
  readonly service_class: string;
  readonly currency: "USD";
  /** List price of the finished video. */
  readonly price: number;
  /** Videos in front of it; null when unknown. */
  readonly queue_position: number | null;
  /** Seconds until it begins; null when unknown. */
  readonly wait_seconds: number | null;
  /** Seconds from its first step to the last. */
  readonly run_seconds: number;
  /** Seconds until it is finished; null when unknown. */
  readonly eta_seconds: number | null;
}

interface EventOf<Type extends string, Data> {
  /** Resumes after this event; null: it is kept nowhere, like a place in the queue. */
  readonly id: string | null;
  readonly type: Type;
  readonly data: { /** Of the video. */ readonly id: string } & Data;
}

/** Where the steps are. */
export interface Steps {
  readonly step: number;
  readonly steps: number;
  readonly percent: number;
  readonly phase: string;
  /** Seconds until it is finished; null until the pace is known. */
  readonly eta_s: number | null;
}

/** Something that happened to a video. A newer server may send types that are not listed here: ignore them. */
export type VideoEvent =
  | EventOf<"queued", { readonly position?: number | null; readonly eta_s?: number | null; readonly reason?: string }>
  | EventOf<"started", object>
  | EventOf<"progress", Steps & { readonly preview?: { readonly step: number; readonly url?: string } }>
  | EventOf<"checkpoint", { readonly step: number }>
  | EventOf<"preempted", object>
  | EventOf<"resumed", { readonly from_step: number }>
  | EventOf<"decoding", Partial<Steps>>
  | EventOf<"postprocessing", { readonly stage?: string }>
  | EventOf<"partial", object>
  | EventOf<"completed", { readonly urls: Readonly<Record<string, string>> }>
  | EventOf<"failed", VideoError>
  | EventOf<"cancelled", Partial<VideoError>>
  /** The whole video, in place of events that are no longer kept. */
  | EventOf<"snapshot", Video>;

/** Whether nothing more is going to happen to a video. */
export function isFinished(video: Pick<Video, "status">): boolean {
  return video.status === "completed" || video.status === "failed";
}

/** Whether a video is finished with this event. */
export function isLast(event: VideoEvent): boolean {
  if (event.type === "snapshot") return isFinished(event.data);
  return event.type === "completed" || event.type === "failed" || event.type === "cancelled";
}

/** How far a video is, from events or from polling alike. */
export interface Progress {
  readonly status: VideoStatus;
  readonly phase: string;
  /** Of the steps. */
  readonly percent: number;
  readonly step: number;
  /** 0 until it is known. */
  readonly steps: number;
  /** Seconds until it is finished; null when unknown. */
  readonly eta_s: number | null;
  /** Videos in front of it; null when it does not wait, or nobody knows. */
  readonly queue_position: number | null;
}

/** Return how far a video is. */
export function progressOf(video: Video): Progress {
  return {
    status: video.status,
    phase: video.phase,
    percent: video.progress,
    step: video.steps_done,
    steps: video.steps_total,
    eta_s: video.eta_seconds,
    queue_position: video.queue_position,
  };
}

/** What is known of a video of which nothing has been heard yet. */
export const UNKNOWN: Progress = {
  status: "queued",
  phase: "queued",
  percent: 0,
  step: 0,
  steps: 0,
  eta_s: null,
  queue_position: null,
};

/** Return how far a video is after an event. */
export function advance(before: Progress, event: VideoEvent): Progress {
  const running: Progress = { ...before, status: "in_progress", queue_position: null };
  switch (event.type) {
    case "queued": {
      const { position = null, eta_s = null } = event.data;
      return { ...before, phase: "queued", eta_s, queue_position: position };
    }
    case "preempted":
      return { ...running, phase: "queued", eta_s: null };
    case "progress": {
      const { step, steps, percent, phase, eta_s } = event.data;
      return { ...running, step, steps, percent, phase, eta_s };
    }
    case "started":
    case "resumed":
      return { ...running, phase: event.type };
    case "decoding":
    case "postprocessing":
      return { ...running, phase: event.type, eta_s: event.type === "decoding" ? (event.data.eta_s ?? null) : null };
    case "completed":
      return { ...running, status: "completed", phase: "completed", percent: 100, step: before.steps, eta_s: 0 };
    case "failed":
    case "cancelled":
      return { ...running, status: "failed", phase: event.type, eta_s: null };
    case "snapshot":
      return progressOf(event.data);
    default:
      return before;
  }
}
