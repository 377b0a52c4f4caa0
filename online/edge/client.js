// Asks the service, and answers on the device if that does not answer; sends feedback when it can.
// No dependency. What it keeps is in IndexedDB, in one database a model.

import { load } from "./edge.js";
import { Refused, able, follow, read } from "./trust.js";

const QUEUE_MAX = 10000, BATCH = 100;

const now = () => Date.now() / 1000;
const fresh = () => Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(36)).join("-");

/**
 * The client of a model.
 *
 * root       the public root key; without it the first list of keys that is seen is believed
 * timeoutMs  how long the service may take to answer
 * everyMs    how often feedback is sent and releases are asked for
 * changed    called with the state whenever it may have changed
 */
export async function open({
  model, base = "", token, root, timeoutMs = 300, everyMs = 60000, changed = () => {},
}) {
  const opening = indexedDB.open(`edge ${base} ${model}`, 1);
  const db = await new Promise((yes, no) => {
    opening.onupgradeneeded = () => {
      opening.result.createObjectStore("held");
      opening.result.createObjectStore("queue", { autoIncrement: true });
    };
    opening.onsuccess = () => yes(opening.result);
    opening.onerror = () => no(opening.error);
  });
  const run = (name, act) => new Promise((yes, no) => {
    const step = db.transaction(name, "readwrite", { durability: "strict" });
    const asked = act(step.objectStore(name));
    step.oncomplete = () => yes(asked.result);
    step.onabort = () => no(step.error);
  });
  const queue = (act) => run("queue", act);
  const trusted = await able();
  const counts = { sent: 0, refused: 0 };
  let held = (await run("held", (store) => store.get(0)))
    ?? { device: fresh(), root: root && { root }, packs: [] };
  let local = held.release && load(held.packs[0].bytes), problem = null, labels = { asked: 0, differ: 0 };

  const url = `${base}/v1/models/${encodeURIComponent(model)}/`;
  const headers = token ? { authorization: "Bearer " + token } : {};
  const post = (path, body, ms) => fetch(url + path, {
    method: "POST", body: JSON.stringify(body), signal: AbortSignal.timeout(ms),
    headers: { ...headers, "content-type": "application/json" },
  });

  async function get(path, most) {
    // What was tampered with on its way must not stay in the browser's cache.
    const cache = path.startsWith("files/") || problem ? "reload" : "no-cache";
    const answer = await fetch(url + "edge/" + path, { headers, cache, signal: AbortSignal.timeout(30000) });
    if (!answer.ok) throw new Refused("http", `${path}: ${answer.status}`);
    return read(answer, most);
  }

  async function hold(next) {
    await run("held", (store) => store.put((held = next), 0));
  }

  // How a release does on devices decides if more of them get it.
  const report = (outcome, sequence, more) =>
    post("edge/reports", { device: held.device, sequence, outcome, ...more }, 30000).catch(() => {});

  // Two at once would fetch twice; whoever asks meanwhile gets the same answer.
  const once = (act) => {
    let going = null;
    return () => (going = going ?? act().finally(() => (going = null)));
  };

  /** Take the release that is meant for this device; resolves to the state. */
  const refresh = once(async () => {
    try {
      if (!trusted) throw new Refused("no_ed25519", "no Ed25519: an old browser, or no https");
      await hold(await follow(get, held, { model, device: held.device, now: now() }));
      if (!held.same || !local) local = load(held.packs[0].bytes);
      if (!held.same) report("used", held.release.sequence, (labels = { asked: 0, differ: 0 }));
      problem = null;
    } catch (error) {
      if (error.sequence) report("failed", error.sequence);
      if (error.seen) await hold(error.seen);
      problem = { code: error.code ?? "network", message: error.message };
    }
    return tell();
  });

  /** The answer of the service, or of this device: `via`, `sequence`, `age_s` say which, how old. */
  async function predict(features) {
    if (navigator.onLine) {
      try {
        const answer = await post("predict", { features }, timeoutMs);
        const said = await answer.json();
        if (answer.ok) {
          // How often the release has another label, told when enough rows have been asked.
          if (local?.header.classes.length) {
            labels.differ += local.predict(features).prediction !== said.prediction;
            if (++labels.asked === 20 || labels.asked === 200) report("used", held.release.sequence, labels);
          }
          return { ...said, features, via: "service", sequence: null, age_s: said.age_ms && said.age_ms / 1000 };
        }
        if (answer.status === 422) throw new Refused("invalid", said.error.message);
      } catch (error) {
        if (error.code === "invalid") throw error;
      }
    }
    if (!local) throw new Refused("offline", "no service and no release");
    const { sequence, freshness } = held.release;
    return {
      ...local.predict(features), features, via: "device", sequence,
      age_s: now() - freshness.snapshot_at, trained_through: freshness.trained_through,
      expired: now() > held.head.expires,
    };
  }

  /** Keep the label of an answer, and send it when that can be; resolves when it is kept. */
  async function feedback({ id, features }, label) {
    if ((await queue((store) => store.count())) >= QUEUE_MAX)
      throw new Refused("full", `${QUEUE_MAX} labels wait on this device`);
    const event = id ? { id, label } : { features, label, event_id: fresh(), event_time: now() };
    await queue((store) => store.add(event));
    flush();
  }

  const flush = once(() => send().catch(() => {}).then(tell));

  // An event is removed when its outcome is known; a repeat of it counts once, by its id.
  async function send() {
    for (let size = BATCH; ; ) {
      const keys = await queue((store) => store.getAllKeys(null, size));
      const rows = await queue((store) => store.getAll(null, size));
      if (!rows.length) return;
      const answer = await post("feedback", { events: rows }, 30000);
      if (answer.ok) {
        const { events } = await answer.json();
        const waits = ({ status, error }) => status === "refused" && !/invalid|malformed|unknown/.test(error?.code);
        const settled = keys.filter((_, i) => !waits(events[i]));
        counts.sent += settled.length;
        counts.refused += events.filter((one) => /refused|conflict|expired|unknown/.test(one.status) && !waits(one)).length;
        await remove(settled);
        if (settled.length < keys.length) return;
      } else if (![400, 413, 422].includes(answer.status)) return;
      // Which of them is it?
      else if (size > 1) size = 1;
      else {
        counts.refused++;
        await remove(keys);
      }
      tell();
    }
  }

  const remove = (keys) => queue((store) => keys.map((key) => store.delete(key))[0]);

  /** What this device has, and what waits. */
  async function state() {
    const { release, head, how, took, device } = held;
    return {
      model, device, trusted, problem, how, took, ...counts,
      sequence: release?.sequence ?? null, revision: head?.revision ?? null, expires: head?.expires,
      age_s: release ? now() - release.freshness.snapshot_at : null,
      features: release?.features, classes: release?.classes, task: release?.task,
      text: local?.header.tokens?.text,
      queued: await queue((store) => store.count()),
    };
  }

  async function tell() {
    const told = await state();
    changed(told);
    return told;
  }

  const both = () => document.visibilityState === "visible" && (flush(), refresh());
  addEventListener("online", both);
  document.addEventListener("visibilitychange", both);
  setInterval(both, everyMs);
  navigator.storage?.persist?.();
  flush();
  refresh();
  return { predict, feedback, refresh, flush, state };
}
