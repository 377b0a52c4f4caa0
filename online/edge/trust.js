// What a device believes: the order of The Update Framework (TUF 1.0, section 5), on WebCrypto.
// Nothing here keeps anything: `follow` gets what the device holds, and returns what it may hold.

import { load, update } from "./edge.js";

const SPEC = 1, MANIFEST_MAX = 65536, FILE_MAX = 8 << 20, TIE = 2e-6;

const TEXT = new TextDecoder(), UTF8 = new TextEncoder();

/** A refusal; `code` is stable. */
export class Refused extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

function insist(holds, code, message) {
  if (!holds) throw new Refused(code, message);
}

const hex = (bytes) => Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
const unhex = (text) => Uint8Array.from(text.match(/../g), (two) => parseInt(two, 16));

export const sha256 = async (bytes) =>
  hex(new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)));

/** The body of an answer; what is longer than `most` bytes is not read to its end. */
export async function read(answer, most) {
  const reader = answer.body.getReader(), parts = [];
  for (let size = 0; ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    size += value.length;
    if (size > most) await reader.cancel();
    insist(size <= most, "too_long", `more than ${most} bytes`);
    parts.push(value);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

async function signed(key, signature, bytes) {
  const known = await crypto.subtle.importKey("raw", unhex(key), "Ed25519", false, ["verify"]);
  return crypto.subtle.verify("Ed25519", known, signature, bytes);
}

/** Can signatures be checked here? Not in old browsers, nor on pages without https. */
export async function able() {
  try {
    return !(await signed("00".repeat(31) + "01", new Uint8Array(64), new Uint8Array(1)));
  } catch {
    return false;
  }
}

/** The newest list of keys. `held`: the list known, or { root } alone: the key that is pinned. */
export async function roots(bytes, held) {
  let root = held;
  for (const { signed: text, signatures } of JSON.parse(TEXT.decode(bytes))) {
    const next = JSON.parse(text), data = UTF8.encode(text);
    if (next.version <= (root?.version ?? 0)) continue;
    insist(next.version === (root?.version ?? 0) + 1, "root", "a list of keys is missing");
    const by = [root?.root ?? next.root, next.root];
    for (const i of [0, 1])
      insist(await signed(by[i], unhex(signatures[i]), data), "root", "a list of keys is forged");
    root = next;
  }
  insist(root?.version, "root", "there is no list of keys");
  return root;
}

/** The manifest, if this device may follow it; `held` is what it has followed so far. */
export async function manifest(bytes, signature, { keys, model, now, held }) {
  let key;
  for (const one of keys) if (await signed(one, signature, bytes)) key = one;
  insist(key, "signature", "the manifest is not signed by a known key");
  const made = JSON.parse(TEXT.decode(bytes));
  insist(made.spec === SPEC, "spec", `the manifest has spec ${made.spec}`);
  insist(made.model === model, "model", `the manifest is of model ${made.model}`);
  insist(now < made.expires, "expired", "the manifest has expired");
  // A key that was taken off the list may have pushed the numbers up: they count no more.
  const last = held && keys.includes(held.key) ? held : { sequence: 0, revision: 0 };
  const ahead = made.sequence - last.sequence || made.revision - last.revision;
  insist(ahead >= 0, "older", `release ${made.sequence}.${made.revision} is older than the one known`);
  return { made, key };
}

/** Bytes, if they are those that were named. */
export async function checked(bytes, named) {
  insist(bytes.length === named.size, "size", `${bytes.length} bytes, ${named.size} are named`);
  insist((await sha256(bytes)) === named.sha256, "hash", "another file than the one named");
  return bytes;
}

/** Where a device stands among 10,000 for a release. */
export async function bucket(device, sequence) {
  const digest = await crypto.subtle.digest("SHA-256", UTF8.encode(`${device}:${sequence}`));
  return new DataView(digest).getUint32(0) % 10000;
}

/** Largest difference from the golden answers; refused beyond the bound, or for another label. */
export function selfTest(pack, golden, most) {
  const model = load(pack);
  let off = 0;
  golden.rows.forEach(({ x, nan }, i) => {
    const row = { ...x };
    for (const name of nan) row[name] = NaN;
    const found = model.outputs(row), wanted = golden.expected[i];
    wanted.forEach((y, k) => (off = Math.max(off, Math.abs(found[k] - y) / Math.max(1, Math.abs(y)))));
    insist(off <= most, "self_test", `golden row ${i} differs by ${off}, ${most} is allowed`);
    if (!model.header.classes.length) return;
    const [a, b] = wanted.length > 1 ? [...wanted].sort((p, q) => q - p) : [wanted[0], 0.5];
    const pick = (out) => (out.length > 1 ? out.indexOf(Math.max(...out)) : +(out[0] > 0.5));
    insist(
      Math.abs(a - b) <= TIE || pick(found) === pick(wanted), "self_test", `golden row ${i}: label`,
    );
  });
  return off;
}

/**
 * What this device is to use now. `get(path, most)` fetches bytes under …/edge/. `held` is what it
 * holds: { root, head, packs: [{ sha256, bytes }], asked: { sha256, rows }, bad }. Returns the same, with `release`, and the
 * pack to use first: the `same` as so far, or `how` it came and how many bytes of files it `took`. What is thrown has `seen`: what to hold all the same, so that
 * nobody can take the device back behind what it has seen.
 */
export async function follow(get, held, { model, device, now, target = "edgepack" }) {
  const seen = { ...held };
  try {
    return await choose(get, seen, { model, device, now, target });
  } catch (error) {
    error.seen = seen;
    throw error;
  }
}

async function choose(get, seen, { model, device, now, target }) {
  seen.root = await roots(await get("roots.json", MANIFEST_MAX), seen.root);
  const rules = { keys: seen.root.keys, model, now, held: seen.head };
  const pair = async () =>
    manifest(await get("manifest.json", MANIFEST_MAX), await get("manifest.sig", 64), rules);
  // The two may come of two releases: then they are asked for once more.
  const { made, key } = await pair().catch((error) => {
    if (error.code !== "signature") throw error;
    return pair();
  });
  const { sequence, revision, expires } = made;
  seen.head = { sequence, revision, expires, key };
  let took = 0;
  const fetched = async (named) => {
    insist(named.size <= FILE_MAX, "too_long", `${named.size} bytes, at most ${FILE_MAX} are read`);
    const bytes = await get("files/" + named.sha256, named.size);
    took += bytes.length;
    return checked(bytes, named);
  };
  let release = made;
  if ((await bucket(device, sequence)) >= made.cohort.percent * 100) {
    insist(made.before, "not_yet", "there is no release for this device yet");
    release = JSON.parse(TEXT.decode(await fetched(made.before)));
  }
  const file = release.targets[target];
  insist(file?.runtime.name === "edge.js", "target", `the release has no ${target}`);
  insist(file.sha256 !== seen.bad, "self_test", "the release failed its test here");
  const packs = seen.packs.filter((one) => one.sha256 !== file.sha256);
  const same = seen.packs.find((one) => one.sha256 === file.sha256);
  if (same) return { ...seen, release, packs: [same, ...packs], same: true };
  let bytes, how = "delta";
  for (const delta of file.deltas ?? []) {
    const base = packs.find((one) => one.sha256 === delta.from_sha256);
    if (!base || bytes) continue;
    // If it fails, the whole file is asked for instead.
    try {
      bytes = await checked(await update(base.bytes, await fetched(delta)), file);
    } catch {}
  }
  if (!bytes) [how, bytes] = ["full", await fetched(file)];
  const parsed = async (named) => JSON.parse(TEXT.decode(await fetched(named)));
  const { parts } = file.parity;
  // The rows are the same over some releases: then only what they are to give is fetched.
  let asked = seen.asked;
  if (parts && asked?.sha256 !== parts.rows.sha256)
    asked = { sha256: parts.rows.sha256, rows: await parsed(parts.rows) };
  const golden = parts ? { rows: asked.rows, expected: await parsed(parts.expected) } : await parsed(file.parity);
  try {
    selfTest(bytes, golden, file.dtype === "float64" ? 1e-12 : 1e-6);
  } catch (error) {
    seen.bad = file.sha256;
    error.sequence = release.sequence;
    throw error;
  }
  // The one before stays: a release that is taken back costs nothing.
  packs.unshift({ sha256: file.sha256, bytes });
  return { ...seen, release, packs: packs.slice(0, 2), asked, same: false, how, took };
}
