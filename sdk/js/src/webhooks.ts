/** Webhooks as Standard Webhooks signs them: HMAC-SHA256 over `id.timestamp.body`. */

import { VitascopeError, WebhookVerificationError } from "./errors.js";

const TOLERANCE_S = 300;
const PREFIX = "whsec_";

/** What the server tells your endpoint. */
export interface WebhookEvent {
  /** The same for every delivery of one event, also in the header `webhook-id`: do nothing the second time. */
  readonly id: string;
  readonly object: "event";
  /** `video.completed`, `video.failed`; a newer server may know more. */
  readonly type: string;
  /** Unix seconds. */
  readonly created_at: number;
  readonly data: { readonly id: string } & Readonly<Record<string, unknown>>;
}

/** The headers of a delivery: of anybody's `fetch`, or of Node. */
export type WebhookHeaders = { get(name: string): string | null } | HeaderRecord;
type HeaderRecord = Readonly<Record<string, string | readonly string[] | undefined>>;

/**
 * Return the event of a delivery once its signature is known to be the server's. Any one of several signatures will do.
 *
 * @param body The body exactly as it came: bytes or text, never JSON that was parsed and written again.
 * @param secret The endpoint's `whsec_…`.
 * @throws WebhookVerificationError It is not signed with this secret, or more than 300 s ago or ahead.
 */
export async function verifyWebhook(
  body: Uint8Array | string,
  headers: WebhookHeaders,
  secret: string,
): Promise<WebhookEvent> {
  const id = header(headers, "webhook-id");
  const timestamp = header(headers, "webhook-timestamp");
  const signatures = header(headers, "webhook-signature");
  if (!/^[0-9]{1,12}$/.test(timestamp)) {
    throw new WebhookVerificationError("The header webhook-timestamp is not a time in Unix seconds.");
  }
  if (Math.abs(Date.now() / 1000 - Number(timestamp)) > TOLERANCE_S) {
    throw new WebhookVerificationError("It was signed more than 300 s ago or ahead; check the clock of this machine.");
  }
  const key = await importKey(secret);
  const bytes = typeof body === "string" ? new TextEncoder().encode(body) : body;
  const head = new TextEncoder().encode(`${id}.${timestamp}.`);
  const signed = new Uint8Array(head.length + bytes.length);
  signed.set(head);
  signed.set(bytes, head.length);
  for (const signature of signatures.split(" ")) {
    const mac = signature.startsWith("v1,") ? fromBase64(signature.slice(3)) : null;
    // `verify` compares in constant time
    if (mac !== null && (await crypto.subtle.verify("HMAC", key, mac, signed))) return parse(bytes);
  }
  throw new WebhookVerificationError("No signature of it was made with this secret.");
}

function parse(bytes: Uint8Array): WebhookEvent {
  try {
    return JSON.parse(new TextDecoder().decode(bytes)) as WebhookEvent;
  } catch (cause) {
    throw new WebhookVerificationError("It is signed, but is not JSON.", { cause });
  }
}

function header(headers: WebhookHeaders, name: string): string {
  const value = typeof headers.get === "function" ? headers.get(name) : own(headers as HeaderRecord, name);
  if (typeof value !== "string" || value === "") throw new WebhookVerificationError(`The header ${name} is missing.`);
  return value;
}

function own(headers: HeaderRecord, name: string): unknown {
  const key = Object.keys(headers).find((one) => one.toLowerCase() === name);
  return key === undefined ? undefined : headers[key];
}

async function importKey(secret: string): Promise<CryptoKey> {
  const raw = fromBase64(secret.startsWith(PREFIX) ? secret.slice(PREFIX.length) : secret);
  if (raw === null || raw.length === 0) throw new VitascopeError("The secret of a webhook is whsec_ and base64.");
  return crypto.subtle.importKey("raw", raw, { name: "HMAC", hash: "SHA-256" }, false, ["verify"]);
}

function fromBase64(text: string): Uint8Array<ArrayBuffer> | null {
  try {
    return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  } catch {
    return null;
  }
}
