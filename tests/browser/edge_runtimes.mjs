// The same rows to edgepack and to ONNX Runtime's wasm build, in Chromium. Prints their answers.
// node edge_runtimes.mjs URL CHROMIUM CASE...

import { createRequire } from "node:module";

const { chromium } = createRequire(process.env.PLAYWRIGHT ?? import.meta.url)("playwright-core");
const [url, executablePath, ...cases] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath, headless: true,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});

async function edgepack(name) {
  const rows = await (await fetch(`/${name}.json`)).json();
  for (const { x, nan } of rows) for (const column of nan) x[column] = NaN;
  const begun = performance.now();
  const { load } = await import("/edge.js");
  const model = load(await (await fetch(`/${name}.edgepack`)).arrayBuffer());
  const first = Array.from(model.outputs(rows[0].x)), ms = performance.now() - begun;
  return { ms, first, out: rows.map(({ x }) => Array.from(model.outputs(x))) };
}

async function onnx(name) {
  const fed = await (await fetch(`/${name}.inputs.json`)).json();
  const begun = performance.now();
  const ort = await import("/ort/ort.wasm.min.mjs");
  ort.env.wasm.wasmPaths = "/ort/";
  ort.env.wasm.numThreads = 1;
  const file = await (await fetch(`/${name}.onnx`)).arrayBuffer();
  const session = await ort.InferenceSession.create(file, { executionProviders: ["wasm"] });
  const feeds = {};
  for (const input of session.inputNames) {
    const { dims, strings, floats } = fed[input];
    const data = strings ?? new Float32Array(Uint8Array.from(atob(floats), (c) => c.charCodeAt(0)).buffer);
    feeds[input] = new ort.Tensor(strings ? "string" : "float32", data, dims);
  }
  const { y } = await session.run(feeds), [n, wide] = y.dims, ms = performance.now() - begun;
  return { ms, out: Array.from({ length: n }, (_, i) => Array.from(y.data.slice(i * wide, (i + 1) * wide))) };
}

const seen = {};
for (const name of cases) {
  seen[name] = {};
  for (const ask of [edgepack, onnx]) { // each in a page of its own: the first answer is a first one
    const context = await browser.newContext(), page = await context.newPage();
    await page.goto(`${url}/index.html`);
    seen[name][ask.name] = await page.evaluate(ask, name);
    await context.close();
  }
}
console.log(JSON.stringify(seen));
await browser.close();
