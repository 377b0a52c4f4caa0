// Reads a file of choices: the expected reward of each action, as the service expects it.

import { hash, spell } from "./edge.js";

const KINDS = { f8: Float64Array, f4: Float32Array, u4: Uint32Array };
const LEFT = 0x9e3779b97f4a7c15n, RIGHT = 0xc2b2ae3d27d4eb4fn, KNOT = 0xa0761d6478bd642fn;
const SALT = 0xd6e8feb86659fd93n, BIAS = 0x9e3779b9, EXPERTS = 4;

const wide = (n) => BigInt.asUintN(64, n);
const right = (h, head) => wide((BigInt(h) ^ wide(SALT * BigInt(head))) * RIGHT);
const sigmoid = (n) => 1 / (1 + Math.exp(-n));

/** The file (ArrayBuffer or bytes): `expected(context, actions)` and `choose(context, actions)`. */
export function load(data) {
  if (data.buffer) data = data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength);
  const head = new DataView(data), size = head.getUint32(4, true), t = {};
  const model = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 8, size)));
  if (head.getUint32(0) !== 0x45504b31 || model.body !== "choices") throw new Error("no choices");
  for (const [name, kind, shape, at] of model.tensors)
    t[name] = new KINDS[kind](data, at, shape.reduce((a, b) => a * b, 1));
  const columns = new Map(model.columns.map((name, i) => [name, i]));
  const rows = new Map(Array.from(t.places, (place, i) => [place, i]));
  const arms = new Map(Array.from(t.ids, (id, i) => [id, t.arms.subarray(2 * i, 2 * i + 2)]));
  const tokens = { spelling: "service", text: model.text }, shift = BigInt(64 - model.bits);

  /** Words as [hash, count], the bias first, and numbers as [hash, z]. */
  function side(features, before) {
    const words = new Map(), numbers = [];
    for (const [sent, value] of Object.entries(features)) {
      const name = before + sent, at = columns.get(name);
      if (typeof value === "number") {
        if (at === undefined || value !== value) continue;
        const [low, high, least, most] = t.ends.subarray(4 * at, 4 * at + 4);
        const near = value < low ? least : value > high ? most : value;
        const z = (near - t.center[at]) * t.factor[at];
        numbers.push([hash(name, model.seed), Math.min(Math.max(z, -model.limit), model.limit)]);
      } else
        for (const [text, n] of spell(tokens, name, value)) {
          const h = hash(text, model.seed) & 0x7fffffff;
          words.set(h, (words.get(h) ?? 0) + n);
        }
    }
    return [[[BIAS, 1], ...words], numbers];
  }

  /** Adds what stands at the product of two sides, times n, to the experts' sums. */
  function add(sums, left, other, n) {
    let mixed = left ^ other;
    mixed = wide((mixed ^ (mixed >> 32n)) * RIGHT) >> shift;
    const row = rows.get(Number(mixed));
    if (row !== undefined)
      for (let e = 0; e < EXPERTS; e++) sums[e] += n * t.weights[row * EXPERTS + e];
  }

  function expected(context, actions) {
    const [words, numbers] = side(context, "");
    const lefts = (pairs) => pairs.map(([h, n]) => [wide(BigInt(h) * LEFT), n]);
    const plain = lefts([...words, ...numbers]), bent = lefts(words);
    for (const [h, z] of numbers) {
      const u = (Math.min(Math.max(z, -3), 3) + 3) / 0.5, at = Math.min(Math.floor(u), 11);
      for (const [knot, n] of [[at + 1, 1 - (u - at)], [at + 2, u - at]])
        bent.push([wide((BigInt(h) + BigInt(knot) * KNOT) * LEFT), n]);
    }
    const all = actions.map(({ id }) => hash(id, 31)), sides = actions.map((one) => side(one.features ?? {}, "@"));
    const described = sides.some(([a, b]) => a.length + b.length > 1), single = all.length === 1;
    // Heads: own and rivals on the context as it is, the same on knots, then the products.
    const raw = all.map((id, i) => [0, 1, 2, 3, 4].map((k) => {
      const sums = new Float64Array(EXPERTS);
      if (k < 4) {
        const r = right(id, k);
        for (const [left, n] of k < 2 ? plain : bent) add(sums, left, r, n);
      } else if (described) {
        for (const [h, n] of sides[i].flat()) {
          const r = right(h, 4);
          for (const [left, m] of plain) add(sums, left, r, n * m);
        }
        add(sums, plain[0][0], right(id, 4), 1);
      }
      return sums;
    }));
    const kind = 2 * (Object.keys(context).length > 0)
      + actions.some(({ features }) => Object.keys(features ?? {}).length > 0);
    const votes = t.votes.subarray(22 * kind, 22 * kind + 22);
    return all.map((id, i) => {
      const means = arms.get(id) ?? [t.prior[0], t.prior[0]];
      let sum = votes[20] * means[0] + votes[21] * means[1];
      for (let k = 0; k < 5; k++)
        for (let e = 0; e < EXPERTS; e++) {
          let share;
          if (k % 2 && !single) {
            const most = Math.max(...raw.map((of) => of[k][e]));
            const total = raw.reduce((a, of) => a + Math.exp(of[k][e] - most), 0);
            share = Math.exp(raw[i][k][e] - most) / total;
          } else share = sigmoid(raw[i][k % 2 ? k - 1 : k === 4 && !described ? 0 : k][e]);
          sum += votes[EXPERTS * k + e] * share;
        }
      return model.low + model.range * sum;
    });
  }

  /** The best action, and all with what is expected of each, the best one first. */
  function choose(context, actions) {
    const means = expected(context, actions);
    const ranking = actions.map(({ id }, i) => ({ id, expected: means[i] }));
    ranking.sort((a, b) => b.expected - a.expected);
    return { action: ranking[0].id, ranking };
  }

  return { header: model, expected, choose };
}
