// Reads an edgepack and answers rows of features, in any ES2020 browser, or Node.

const KINDS = {
  f8: Float64Array, f4: Float32Array, i4: Int32Array, i2: Int16Array,
  u4: Uint32Array, u2: Uint16Array, u1: Uint8Array,
};

const UTF8 = new TextEncoder();

/** murmur3 of a text's UTF-8 bytes, unsigned. */
export function hash(text, seed) {
  const bytes = UTF8.encode(text), n = bytes.length, mul = Math.imul;
  const mix = (k) => mul(((k = mul(k, 0xcc9e2d51)) << 15) | (k >>> 17), 0x1b873593);
  let h = seed, i = 0, k = 0;
  for (; i + 4 <= n; i += 4) {
    h ^= mix(bytes[i] | (bytes[i + 1] << 8) | (bytes[i + 2] << 16) | (bytes[i + 3] << 24));
    h = mul((h << 13) | (h >>> 19), 5) + 0xe6546b64;
  }
  for (let j = n & 3; j--; ) k = (k << 8) | bytes[i + j];
  h ^= mix(k) ^ n;
  h = mul(h ^ (h >>> 16), 0x85ebca6b);
  h = mul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

/** The texts that a value is looked up by, and numbers. */
export function spell(tokens, name, value) {
  const { spelling, text } = tokens;
  if (typeof value === "number" && spelling !== "onehot")
    return tokens.numbers ? [[name, value]] : [];
  if (spelling === "river" && typeof value === "boolean") return [[name, +value]];
  if (spelling !== "service") {
    if (value === null) return [];
    if (value === true) value = "True";
    if (value === false) value = "False";
    return [[name + (spelling === "river" ? "=" : "_") + value, 1]];
  }
  if (value === null) return [[name + "\0", 1]];
  if (typeof value === "string" && text.includes(name)) {
    const words = value.toLowerCase().match(/[\p{L}\p{N}_]+/gu) || [];
    return [...new Set(words)].map((word) => [name + "\x01" + word, 1]);
  }
  const ascii = JSON.stringify(value).replace(
    /[\x7f-\uffff]/g, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"),
  );
  return [[name + "=" + ascii, 1]];
}

// Rows of e: least, greatest of n columns; what stands for a smaller, for a greater number.
const within = (value, e, n, i) => value < e[i] ? e[2 * n + i] : value > e[n + i] ? e[3 * n + i] : value;

function link(kind, v, from, n) {
  if (kind === "sigmoid") for (let i = from; i < from + n; i++) v[i] = 1 / (1 + Math.exp(-v[i]));
  if (kind !== "softmax") return;
  let most = -Infinity, total = 0;
  for (let i = from; i < from + n; i++) most = Math.max(most, v[i]);
  for (let i = from; i < from + n; i++) total += v[i] = Math.exp(v[i] - most);
  for (let i = from; i < from + n; i++) v[i] /= total;
}

/** The model in an edgepack (ArrayBuffer or bytes): its header, and `predict(features)`. */
export function load(data) {
  if (data.buffer) data = data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength);
  const head = new DataView(data);
  if (head.getUint32(0) !== 0x45504b31) throw new Error("no edgepack");
  const size = head.getUint32(4, true);
  const model = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 8, size)));
  const t = {};
  for (const [name, kind, shape, at] of model.tensors)
    t[name] = new KINDS[kind](data, at, shape.reduce((a, b) => a * b, 1));
  const { columns, tokens, classes, body } = model;
  const limit = model.limit ?? Infinity;
  const places = new Map(columns.map((name, i) => [name, i]));
  const index = (words) => new Map(words.map((word, i) => [word, i]));
  const codes = new Map(Object.entries(model.vocabularies ?? {}).map(([n, w]) => [n, index(w)]));
  const words = tokens && index(tokens.words);
  const left = [], right = [];
  let leaves = 0;

  // Branches and leaves stand in preorder: flags 4 and 8 say that a child is a leaf.
  function grow(ends) {
    if (ends) return ~leaves++;
    const at = left.length;
    left.push(0);
    right.push(0);
    left[at] = grow(t.flags[at] & 4);
    right[at] = grow(t.flags[at] & 8);
    return at;
  }

  const roots = Array.from(t.stumps ?? [], grow);

  function find(text) {
    if (tokens.spelling === "onehot") return [words.get(text) ?? -1, 1];
    let h = hash(text, tokens.seed), sign = 1, low = 0, high = t.keys.length - 1;
    if (tokens.spelling === "river") {
      h |= 0;
      if (tokens.signed && h < 0) sign = -1;
      h = ((h % tokens.buckets) + tokens.buckets) % tokens.buckets;
    } else h = (h & (tokens.buckets - 1)) >>> 0;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (t.keys[middle] < h) low = middle + 1;
      else high = middle;
    }
    return [t.keys[low] === h ? low : -1, sign];
  }

  function encode(features) {
    const x = new Float64Array(columns.length).fill(NaN), found = [];
    for (const [name, value] of Object.entries(features)) {
      const column = places.get(name), number = typeof value === "number";
      if (column !== undefined) {
        if (codes.has(name)) {
          if (value !== null) x[column] = codes.get(name).get(value) ?? -1;
        } else if (number || (!tokens && typeof value === "boolean")) x[column] = value;
        if (number) continue;
      }
      if (!tokens) continue;
      for (const [text, n] of spell(tokens, name, value)) {
        const [row, sign] = find(text);
        if (row >= 0) found.push([row, n * sign]);
      }
    }
    return [x, found];
  }

  const bodies = {
    linear(x, z, found) {
      const { votes, bias, weights } = t, wide = bias.length, n = wide / votes.length;
      const raw = Float64Array.from(bias), out = new Float64Array(n);
      const add = (table, row, value) => {
        for (let o = 0; o < wide; o++) raw[o] += value * table[row * wide + o];
      };
      z.forEach((value, i) => {
        if (value !== value) return;
        add(weights, i, value);
        const p = 11 / (1 + Math.exp(-1.702 * value));
        for (let k = 0; t.bent && k < 12; k++)
          add(t.bent, i * 12 + k, Math.max(1 - Math.abs(p - k), 0));
      });
      for (const [row, value] of found) add(t.table, row, value);
      for (let k = 0; k < votes.length; k++) {
        link(model.link, raw, k * n, n);
        for (let o = 0; o < n; o++) out[o] += votes[k] * raw[k * n + o];
      }
      return out;
    },
    mlp(x, z) {
      const ids = model.ids ?? [], numbers = z.length - ids.length;
      let h = Array.from(z.subarray(0, numbers), (value) => value || 0);
      ids.forEach((wide, k) => {
        const rows = t["rows" + k], n = rows.length / wide;
        const at = (((Math.floor(x[numbers + k] || 0) % n) + n) % n) * wide;
        h.push(...rows.subarray(at, at + wide));
      });
      model.activations.forEach((kind, layer) => {
        const weights = t["weights" + layer], wide = h.length;
        h = Float64Array.from(t["bias" + layer], (sum, o) => {
          for (let i = 0; i < wide; i++) sum += weights[o * wide + i] * h[i];
          return kind === "relu" ? Math.max(sum, 0) : kind === "tanh" ? Math.tanh(sum) : sum;
        });
        link(kind, h, 0, h.length);
      });
      link(model.link, h, 0, h.length);
      return h;
    },
    forest(x, z) {
      const wide = t.base.length / (t.term_start.length - 1), out = new Float64Array(wide);
      const each = [];
      roots.forEach((at, tree) => {
        while (at >= 0) {
          const value = x[t.feature[at]], than = t.threshold[at];
          const flags = t.flags[at], low = value !== value ? flags & 2
            : flags & 1 ? value === than : value <= than;
          at = (low ? left : right)[at];
        }
        leaf(~at, bayes ? t.weights[tree] : 1, z, wide, model.median ? out.fill(0) : out);
        each.push(out[0]);
      });
      if (model.median) {
        each.sort((a, b) => a - b);
        const n = each.length;
        return [(each[(n - 1) >> 1] + each[n >> 1]) / 2];
      }
      const total = out.reduce((a, b) => a + b);
      return model.task !== "regression" && total > 0 ? out.map((p) => p / total) : out;
    },
  };

  bodies.bent = bodies.linear;
  const bayes = model.leaves === "bayes";

  function leaf(at, weight, z, wide, out) {
    const votes = Float64Array.from(t.base.subarray(at * wide, (at + 1) * wide));
    for (let i = t.term_start[at]; i < t.term_start[at + 1]; i++) {
      const value = z[t.term_feature[i]];
      if (value !== value) continue;
      for (let o = 0, j = i * wide; o < wide; o++, j++) {
        const slope = t.slope[j];
        if (!bayes) votes[o] += slope * value;
        else if (slope > 0)
          votes[o] += Math.log(slope / Math.PI) / 2 - slope * (value - t.mean[j]) ** 2;
      }
    }
    if (bayes) {
      if (votes.every((vote) => vote === -Infinity)) return;
      link("softmax", votes, 0, wide);
    }
    for (let o = 0; o < wide; o++) out[o] += weight * votes[o];
  }

  /** The number, the probability of classes[1], or one of each class. */
  function outputs(features) {
    const [sent, found] = encode(features);
    const x = t.ends ? sent.map((value, i) => within(value, t.ends, sent.length, i)) : sent;
    const z = x.map((value, i) => {
      value = (value - t.center[i]) * t.factor[i];
      return value > limit ? limit : value < -limit ? -limit : value;
    });
    return bodies[body](x, z, found);
  }

  /** What the service's predict answers. */
  function predict(features) {
    let out = outputs(features);
    if (!classes.length) return { prediction: out[0] };
    if (model.link === "sigmoid") out = [1 - out[0], out[0]];
    let best = 0;
    out.forEach((p, i) => p > out[best] && (best = i));
    const pairs = classes.map((label, i) => [String(label), out[i]]);
    return { prediction: classes[best], probabilities: Object.fromEntries(pairs) };
  }

  return { header: model, outputs, predict };
}

/** The next pack, from the one at hand and a difference; compare its SHA-256 before use. */
export async function update(old, delta) {
  const unpack = new DecompressionStream("deflate-raw");
  const read = new Response(new Blob([delta.subarray(4)]).stream().pipeThrough(unpack));
  const d = new Uint8Array(await read.arrayBuffer()), out = Uint8Array.from(old), n = out.length;
  let p = 0, step;
  if (delta[3] === 56) {
    const { tensors } = load(old).header, scales = new DataView(d.buffer);
    const floats = tensors.filter((tensor) => tensor[1] === "f4");
    p = 4 * floats.length;
    floats.forEach(([, , shape, at], row) => {
      const values = new Float32Array(out.buffer, at, shape.reduce((a, b) => a * b, 1));
      const scale = scales.getFloat32(4 * row, true);
      for (let i = 0; i < values.length; i++)
        // 127 and -128 go on with the next byte.
        do values[i] += (step = (d[p++] << 24) >> 24) * scale; while ((step ^ (step >> 31)) === 127);
    });
  }
  for (let k = 0; k < 4; k++) for (let i = k; i < n; i += 4) out[i] ^= d[p++];
  return out;
}
