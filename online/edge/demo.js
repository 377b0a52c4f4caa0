// The demo page: ask, correct, go offline, come back. All that matters is in client.js.

import { open } from "./client.js";

const base = new URL("..", import.meta.url).pathname.slice(0, -1);  // a proxy may serve it under a prefix
const byId = (id) => document.getElementById(id);
const say = (id, text) => (byId(id).textContent = text);

function el(tag, attributes, ...inside) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...inside);
  return node;
}

function ago(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  for (const [unit, size] of [["days", 86400], ["h", 3600], ["min", 60]])
    if (seconds >= 2 * size) return `${Math.round(seconds / size)} ${unit}`;
  return `${Math.max(0, Math.round(seconds))} s`;
}

const bytes = (n) => (n < 1000 ? `${n} bytes` : `${(n / 1000).toFixed(1)} kB`);

// -- the switch: every request of this page fails while it is off -------------------------------

const network = window.fetch.bind(window);
let away = false;
window.fetch = (...given) => (away ? Promise.reject(new TypeError("switched off")) : network(...given));

function connected() {
  const on = !away && navigator.onLine;
  byId("network").checked = on;
  say("online", on ? "online" : "offline");
}

byId("network").addEventListener("change", (event) => {
  away = !event.target.checked;
  connected();
  if (!away) window.dispatchEvent(new Event("online"));
});
addEventListener("online", connected);
addEventListener("offline", connected);

// -- which model, and with which token ------------------------------------------------------------

const stored = (name) => { try { return localStorage.getItem(name); } catch { return null; } };
const store = (name, text) => { try { localStorage.setItem(name, text); } catch { /* this page only */ } };
let token = null;
try { token = sessionStorage.getItem("token"); } catch { /* no storage here */ }

byId("access").addEventListener("submit", (event) => {
  event.preventDefault();
  token = byId("token").value.trim();
  try { sessionStorage.setItem("token", token); } catch { /* this page only */ }
  byId("access").hidden = true;
  start();
});

function warn(text) {
  byId("banner").hidden = !text;
  say("banner", text ?? "");
}

async function models() {
  try {
    const headers = token ? { authorization: "Bearer " + token } : {};
    const answer = await fetch(base + "/v1/models", { headers, signal: AbortSignal.timeout(3000) });
    if (answer.status === 401 || answer.status === 403) {
      byId("access").hidden = false;
      return null;
    }
    const names = (await answer.json()).models.map((one) => one.model);
    store("edge-models", JSON.stringify(names));
    return names;
  } catch {
    return JSON.parse(stored("edge-models") ?? "[]");
  }
}

// -- questions: a drawing, or a form --------------------------------------------------------------

const paper = byId("paper"), pen = paper.getContext("2d");
let strokes = [], names = [], texts = [], drawn = false;

// 8 × 8 counts of 0 to 16, as scikit-learn's digits: a bitmap of 32 × 32, counted in blocks of four.
const isDrawing = (features) => features.length > 32 && features.every((name) => /^p([1-5]?\d|6[0-3])$/.test(name));

function paint() {
  pen.clearRect(0, 0, 320, 320);
  pen.lineCap = pen.lineJoin = "round";
  pen.lineWidth = 26;
  pen.strokeStyle = getComputedStyle(document.body).color;
  trace(pen, (point) => point);
}

function trace(context, place) {
  for (const stroke of strokes) {
    context.beginPath();
    stroke.map(place).forEach(([x, y]) => context.lineTo(x, y));
    if (stroke.length === 1) context.lineTo(...place([stroke[0][0] + 0.1, stroke[0][1]]));
    context.stroke();
  }
}

function picture() {
  const points = strokes.flat(), xs = points.map((p) => p[0]), ys = points.map((p) => p[1]);
  const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const scale = 27 / Math.max(bottom - top, (right - left) * 1.25, 40);
  const context = new OffscreenCanvas(32, 32).getContext("2d");
  context.lineCap = context.lineJoin = "round";
  context.lineWidth = 3.6;
  trace(context, ([x, y]) => [16 + (x - (left + right) / 2) * scale, 16 + (y - (top + bottom) / 2) * scale]);
  const { data } = context.getImageData(0, 0, 32, 32), counts = {};
  for (let i = 0; i < 64; i++) counts["p" + i] = 0;
  for (let i = 0; i < 1024; i++)
    if (data[4 * i + 3] > 100) counts["p" + ((i >> 7) * 8 + ((i & 31) >> 2))]++;
  return counts;
}

const at = (event) => [(event.offsetX * 320) / paper.clientWidth, (event.offsetY * 320) / paper.clientHeight];
paper.addEventListener("pointerdown", (event) => {
  paper.setPointerCapture(event.pointerId);
  if (answered) clear();
  strokes.push([at(event)]);
  paint();
});
paper.addEventListener("pointermove", (event) => {
  if (!event.buttons || !strokes.length) return;
  strokes[strokes.length - 1].push(at(event));
  paint();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);

function fields() {
  const made = names.map((name) => el("label", {}, name, el("input", { type: "text", name, inputmode: "text", placeholder: "missing", autocomplete: "off" })));
  made.push(...texts.map((name) => el("label", { class: "text" }, name, el("textarea", { name, rows: 3 }))));
  byId("fields").replaceChildren(...made);
}

function filled() {
  const features = {};
  for (const field of byId("fields").querySelectorAll("input, textarea")) {
    const text = field.value.trim();
    if (text) features[field.name] = field.tagName === "INPUT" && text !== "" && isFinite(text) ? +text : text;
  }
  return features;
}

function clear() {
  strokes = [];
  answered = before = null;
  paint();
  byId("form").reset();
  show();
}

byId("clear").addEventListener("click", clear);
byId("predict").addEventListener("click", ask);
byId("form").addEventListener("submit", (event) => { event.preventDefault(); ask(); });

// -- answers, and what is taught ------------------------------------------------------------------

let client, answered = null, before = null;

async function ask() {
  const features = drawn ? strokes.length && picture() : filled();
  if (!features || !Object.keys(features).length) return;
  await put(features);
}

async function put(features) {
  try {
    answered = await client.predict(features);
    warn(null);
  } catch (error) {
    warn(error.message);
  }
  show();
}

function show() {
  const none = answered === null, shares = answered?.probabilities;
  const text = none ? "–" : typeof answered.prediction === "number" && !shares
    ? answered.prediction.toPrecision(5) : String(answered.prediction);
  say("label", text);
  byId("label").className = text.length > 6 ? "label long" : "label";
  byId("via").className = "chip " + (answered?.via ?? "");
  say("via", none ? "not asked yet" : answered.via === "service" ? "by the service" : "by this device");
  say("how", none ? "" : answered.via === "service"
    ? `version ${answered.version}` : `release ${answered.sequence}, ${ago(answered.age_s)} old${answered.expired ? ", expired" : ""}`);
  const rows = Object.entries(shares ?? {}).flatMap(([label, share]) => {
    const bar = el("span", { class: "bar" }, el("i", {}));
    bar.firstChild.style.width = `${100 * share}%`;
    if (before?.[label] !== undefined) {
      const mark = el("u", {});
      mark.style.left = `calc(${100 * before[label]}% - 1px)`;
      bar.append(mark);
    }
    return [el("b", {}, label), bar, el("span", { class: "right" }, `${(100 * share).toFixed(1)} %`)];
  });
  byId("bars").replaceChildren(...rows);
  byId("legend").hidden = !before;
  byId("correct").hidden = none;
  if (none) say("taught", "");
}

async function teach(label) {
  try {
    await client.feedback(answered, label);
  } catch (error) {
    warn(error.message);
    return;
  }
  say("taught", `${label}: kept on this device, and sent when the service answers`);
  await client.flush();
  waiting = label;
  tell(await client.state());
}

function answers(state) {
  const long = (state.classes ?? []).some((label) => String(label).length > 2);
  byId("classes").className = long ? "classes long" : "classes";
  byId("number").hidden = state.task !== "regression";
  byId("classes").replaceChildren(...(state.classes ?? []).map((label) => {
    const button = el("button", { type: "button" }, String(label));
    button.addEventListener("click", () => teach(label));
    return button;
  }));
}

byId("number").addEventListener("submit", (event) => {
  event.preventDefault();
  teach(+byId("value").value);
});

// -- the device -----------------------------------------------------------------------------------

const HOW = { full: "whole file", delta: "difference" };
let laidOut = "", waiting = null, release = null;

// Asked again when something was learned, or another release came: the mark shows how it moved.
function moved() {
  if (!answered) return;
  before = answered.probabilities ?? null;
  put(answered.features);
}

function tell(state) {
  if (waiting !== null && !state.queued) {
    say("taught", `${waiting}: the service has it`);
    waiting = null;
    moved();
  } else if (release !== null && state.sequence !== release) moved();
  release = state.sequence;
  say("release", state.sequence === null ? "none yet" : String(state.sequence));
  say("age", ago(state.age_s));
  byId("update").replaceChildren(state.how ? HOW[state.how] : "–", el("small", {}, state.took ? bytes(state.took) : ""));
  byId("queue").replaceChildren(String(state.queued), el("small", {}, state.sent ? `${state.sent} sent` : ""));
  say("trust", state.problem?.code === "network" ? "The service does not answer: this release goes on."
    : state.problem ? `No new release: ${state.problem.message}` : state.sequence === null ? "" : "Signature, files and golden answers checked here.");
  if (!state.features) return;
  const layout = JSON.stringify([state.features, state.text, state.classes]);
  if (layout === laidOut) return;
  laidOut = layout;
  texts = state.text ?? [];
  names = state.features;
  drawn = isDrawing(names);
  paper.hidden = !drawn;
  byId("form").hidden = drawn;
  say("ask", drawn ? "Draw a digit" : "Fill in what is known");
  if (!drawn) fields();
  answers(state);
  byId("work").hidden = false;
  paint();
}

byId("refresh").addEventListener("click", () => client.refresh());

function noRelease(model, problem) {
  const why = problem?.message ?? "";
  return why.endsWith("404")
    ? `Nothing is published for devices yet. \`online edge publish --model ${model}\` makes a release; this page finds it then.`
    : `No release is on this device: ${why}`;
}

async function start() {
  connected();
  if ("serviceWorker" in navigator) navigator.serviceWorker.register("worker.js").catch(() => {});
  const known = await models();
  if (known === null) return;
  const asked = new URLSearchParams(location.search).get("model");
  const model = asked ?? known[0];
  if (!model) {
    warn("The service does not answer, and this device has been here never before.");
    return;
  }
  say("title", model);
  document.title = `${model} on this device`;
  byId("models").hidden = known.length < 2;
  byId("title").hidden = known.length > 1;
  byId("models").replaceChildren(...known.map((name) => el("option", name === model ? { selected: "" } : {}, name)));
  client = await open({ model, base, token, everyMs: 5000, changed: tell });
  tell(await client.state());
  warn("Looking for a release …");
  const state = await client.refresh();
  warn(state.sequence !== null ? null : noRelease(model, state.problem));
  setInterval(async () => say("age", ago((await client.state()).age_s)), 1000);
}

byId("models").addEventListener("change", (event) => location.assign(`?model=${encodeURIComponent(event.target.value)}`));
start();
