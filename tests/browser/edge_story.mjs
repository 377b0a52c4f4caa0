// The life of a device, in Chromium, on the demo page. Prints what it saw; the test judges it.
// node edge_story.mjs URL CHROMIUM PROFILE

import { createRequire } from "node:module";

const { chromium } = createRequire(process.env.PLAYWRIGHT ?? import.meta.url)("playwright-core");
const [url, executablePath, profile] = process.argv.slice(2);
const context = await chromium.launchPersistentContext(profile, {
  executablePath, headless: true,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
const page = await context.newPage(), seen = {}, errors = [];
page.on("pageerror", (error) => errors.push(error.message));
page.setDefaultTimeout(120000);

const control = async (what) =>
  (await fetch(`${url}/control`, { method: "POST", body: JSON.stringify(what) })).json();
const text = (id) => page.locator("#" + id).textContent();
const becomes = (id, pattern) =>
  page.waitForFunction(([i, p]) => new RegExp(p).test(document.getElementById(i).textContent), [id, pattern])
    .catch(async () => {
      throw new Error(`${id} is not ${pattern}: ${await page.innerText("body")} ${errors}`);
    });
const look = async (id, pattern) => {
  await page.click("#refresh");
  await becomes(id, pattern);
};
async function ask() {
  await page.fill("[name=a]", "1");
  await page.fill("[name=b]", "-2");
  await page.click("#predict");
  await becomes("via", "by");
  return { label: await text("label"), via: await text("via"), how: await text("how") };
}
// A busy machine may miss the service's 300 ms: then it is asked again.
async function asked(via) {
  for (let tries = 0; tries < 20; tries++) {
    await page.click("#clear");
    const answer = await ask();
    if (answer.via.includes(via))
      return { ...answer, bars: await page.locator("#bars .right").allTextContents() };
  }
  throw new Error(`never answered by ${via}`);
}

await control({ publish: 1 });
await page.goto(url + "/edge/demo?model=m");
await becomes("release", "^1$");
seen.first = await text("update");
seen.service = await asked("service");
await control({ mute: true });
seen.muted = await asked("device");
await control({ mute: false });

await control({ publish: 2 });
await look("release", "^2$");
seen.second = await text("update");

await control({ publish: 3, tamper: "manifest.json" });
await look("trust", "not signed");
await control({ tamper: "/files/" });
await look("trust", "another file");
seen.tampered = [await text("release"), await text("trust")];
await control({ tamper: "" });
await look("release", "^3$");

while (!(await control({})).reports); // that it uses the release, told by the way

await control({ replay: true });
await look("trust", "older");
seen.replayed = [await text("release"), await text("trust")];
await control({ replay: false, expired: true });
await look("trust", "expired");
seen.expired = [await text("release"), await text("trust")];
await control({ expired: false });
await look("trust", "checked");

await page.evaluate(() => navigator.serviceWorker.ready.then(() => 0));
await page.reload(); // under the worker's control from here on
await becomes("release", "^3$");
await context.setOffline(true);
await page.reload();
await becomes("release", "^3$");
seen.offline = await asked("device");
for (const [label, waits] of [["y", "1"], ["z", "2"]]) {
  await page.click(`#classes button:text-is("${label}")`);
  await becomes("queue", "^" + waits);
}
seen.waiting = await control({});

await control({ lose: 1 });
await context.setOffline(false);
await becomes("queue", "^0");
seen.sent = await text("queue");
seen.after = await control({});

// It learns from two rows; the answer to the first push is lost.
await control({ lose: 1 });
const push = (rows) => page.evaluate(async (given) => {
  const { push } = await import("/edge/learn.js");
  return (await push(given, { model: "m" }))?.status ?? null;
}, rows);
const rows = [[{ a: 1, b: -2 }, "y"], [{ a: 2 }, "z"]];
seen.pushed = [await push(rows)];
for (let tries = 0; tries < 20 && seen.pushed.at(-1) !== "duplicate"; tries++) seen.pushed.push(await push([]));
seen.next = await push(rows);
seen.deltas = (await control({})).deltas;
await control({ mute: true });
seen.state = await page.evaluate(async () => {
  const { open } = await import("/edge/client.js");
  return (await open({ model: "m", timeoutMs: 50 })).predict({ a: 1 });
});
await control({ mute: false });
seen.errors = errors;
console.log(JSON.stringify(seen));
await context.close();
