// Learns on the device, and sends what its rows did to the release that it has, not the rows.
// Beside client.js, whose database it reads; a page that does not import it does not load it.

const KINDS = { f8: Float64Array, f4: Float32Array };

/** Tables of an edgepack that a device can learn: linear models and last layers, of numbers. */
function open(bytes) {
  const data = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
  const size = new DataView(data).getUint32(4, true), t = {};
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 8, size)));
  for (const [name, kind, shape, at] of head.tensors)
    if (KINDS[kind]) t[name] = Float64Array.from(new KINDS[kind](data, at, shape.reduce((a, b) => a * b, 1)));
  const last = head.activations?.length - 1, network = head.body === "mlp";
  if (head.tokens || head.ids || head.task === "regression" || !(network ? head.activations[last] === "none" : t.votes?.length === 1))
    throw new Error("devices learn linear models and last layers, of numbers");
  return { head, t, network, last };
}

const limited = (value, most) => Math.min(Math.max(value, -most), most);

/** What the weights that learn are multiplied with. */
function inputs({ head, t, network, last }, features) {
  const most = head.limit ?? Infinity;
  let z = head.columns.map((name, i) => {
    const value = features[name], sent = /number|boolean/.test(typeof value) ? +value : NaN;
    const e = t.ends, n = head.columns.length;
    const number = !e ? sent : sent < e[i] ? e[2 * n + i] : sent > e[n + i] ? e[3 * n + i] : sent;
    return limited((number - t.center[i]) * t.factor[i], most) || 0;
  });
  for (let layer = 0; network && layer < last; layer++) {
    const kind = head.activations[layer], weights = t["weights" + layer], wide = z.length;
    z = Array.from(t["bias" + layer], (sum, o) => {
      for (let i = 0; i < wide; i++) sum += weights[o * wide + i] * z[i];
      if (kind === "relu") return Math.max(sum, 0);
      return kind === "tanh" ? Math.tanh(sum) : kind === "sigmoid" ? 1 / (1 + Math.exp(-sum)) : sum;
    });
  }
  return z;
}

function answers(link, raw) {
  if (link === "sigmoid") return raw.map((x) => 1 / (1 + Math.exp(-x)));
  const most = Math.max(...raw), powers = raw.map((x) => Math.exp(x - most));
  const total = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / total);
}

/**
 * What one step of each row, [features, label], does to a pack: { weights, bias, n }, at most
 * `clip` long. Labels are those of the release; others are an error.
 */
export function learn(bytes, rows, { rate, clip }) {
  const pack = open(bytes), { head, t, network, last } = pack;
  const weights = network ? t["weights" + last] : t.weights, bias = network ? t["bias" + last] : t.bias;
  const start = [weights.slice(), bias.slice()], outputs = bias.length;
  const own = network || head.link === "sigmoid"; // river's softmax has no intercept
  for (const [features, label] of rows) {
    const x = inputs(pack, features), wide = x.length, place = head.classes.indexOf(label);
    if (place < 0) throw new Error(`the release does not know the label ${label}`);
    const at = network ? (i, o) => o * wide + i : (i, o) => i * outputs + o;
    const raw = Array.from(bias, (sum, o) => {
      for (let i = 0; i < wide; i++) sum += weights[at(i, o)] * x[i];
      return sum;
    });
    answers(head.link, raw).forEach((p, o) => {
      const step = rate * (p - (outputs > 1 ? +(o === place) : place));
      for (let i = 0; i < wide; i++) weights[at(i, o)] -= step * x[i];
      if (own) bias[o] -= step;
    });
  }
  const moved = [weights, bias].map((now, k) => now.map((value, i) => value - start[k][i]));
  const length = Math.hypot(...moved.map((values) => Math.hypot(...values)));
  const share = length > clip ? clip / length : 1;
  const [w, b] = moved.map((values) => values.map((value) => value * share));
  return { weights: w, bias: b, n: rows.length };
}

/** Numbers as int8, cut towards zero so that no delta gets longer, and their scale. */
function small(values) {
  const scale = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0) / 127 || 1;
  const bytes = Int8Array.from(values, (value) => limited(Math.trunc(value / scale), 127));
  return { scale, int8: btoa(String.fromCharCode(...new Uint8Array(bytes.buffer))) };
}

/** The body of a push; `event` counts the device's. */
export const body = ({ weights, bias, n }, device, event, sequence) =>
  ({ device, event, sequence, n, weights: small(weights), bias: small(bias) });

const done = (asked) => new Promise((yes, no) => {
  asked.onsuccess = () => yes(asked.result);
  asked.onerror = () => no(asked.error);
});

/**
 * Learn from rows, and push the delta. It is kept until the service has said what became of it, so
 * that a push whose answer was lost is sent again with its number, and counts once; rows that are
 * given meanwhile wait for the next call. Resolves to the receipt, or null: nothing to send, or
 * nobody answers.
 */
export async function push(rows, { model, base = "", token }) {
  const opening = indexedDB.open(`edge ${base} ${model} learn`, 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore("held");
  const [mine, theirs] = await Promise.all([done(opening), done(indexedDB.open(`edge ${base} ${model}`))]);
  const of = (db, mode) => db.transaction("held", mode, { durability: "strict" }).objectStore("held");
  const held = await done(of(theirs, "readonly").get(0));
  theirs.close();
  let { event = 0, waits } = (await done(of(mine, "readonly").get(0))) ?? {};
  if (!waits && rows.length && held?.release?.learn) {
    const { release, device, packs } = held;
    waits = body(learn(packs[0].bytes, rows, release.learn), device, ++event, release.sequence);
    await done(of(mine, "readwrite").put({ event, waits }, 0));
  }
  let receipt = null;
  if (waits) {
    const answer = await fetch(`${base}/v1/models/${encodeURIComponent(model)}/edge/deltas`, {
      method: "POST", body: JSON.stringify(waits), signal: AbortSignal.timeout(30000),
      headers: { "content-type": "application/json", ...(token && { authorization: "Bearer " + token }) },
    }).catch(() => null);
    const said = await answer?.json().catch(() => null);
    // Later it may be taken; anything else is the last word.
    if (said && answer.status < 500 && answer.status !== 429 && ![401, 403].includes(answer.status)) {
      await done(of(mine, "readwrite").put({ event }, 0));
      receipt = said;
    }
  }
  mine.close();
  return receipt;
}
