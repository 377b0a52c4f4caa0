// A page behind a proxy follows the service by its stream, and asks by itself where that does not come through.
// node page_follow.mjs URL CHROMIUM TOKEN SERVICE

import { createRequire } from "node:module";

const require = createRequire(process.env.PLAYWRIGHT ?? import.meta.url);
const { chromium } = require("playwright-core");
const [url, executablePath, token, service] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath, headless: true, args: ["--no-sandbox", "--disable-gpu", "--disable-quic"] });
const errors = [];
let sent = 0;

async function open(streams) {
  const context = await browser.newContext(), page = await context.newPage(), asked = { live: 0, models: 0, outside: 0 };
  page.setDefaultTimeout(120000);
  page.on("pageerror", (error) => errors.push(error.message));
  page.on("console", (message) => { if (message.type() === "error" && !/status of 401|ERR_FAILED/.test(message.text())) errors.push(message.text()); });
  page.on("request", (request) => {
    if (!request.url().startsWith(url) && !request.url().startsWith("data:")) asked.outside++;
    if (request.url().endsWith("/v1/live")) asked.live++;
    if (request.url().endsWith("/v1/models")) asked.models++;
  });
  if (!streams) await page.route("**/v1/live", (route) => route.abort());
  await page.addInitScript((held) => window.sessionStorage.setItem("token", held), token);
  await page.goto(url);
  const shown = (text) => page.waitForFunction((wanted) => document.querySelectorAll("#rows tr").length && document.body.textContent.includes(wanted), text);
  await shown("model-5");
  await page.evaluate(() => { window.location.hash = "model-5"; });
  const before = await page.locator("section.card:visible").last().locator("dd").nth(1).textContent();
  const body = { features: { x: 1 }, label: true, event_id: `follows-${sent++}` };
  await fetch(`${service}/v1/models/model-5/feedback`, { method: "POST", headers: { authorization: `Bearer ${token}` }, body: JSON.stringify(body) });
  await page.waitForFunction((text) => {
    const card = [...document.querySelectorAll("section.card")].filter((node) => !node.hidden).pop();
    return card.querySelectorAll("dd")[1].textContent !== text;
  }, before);
  const curl = await page.locator("pre:visible").first().textContent();
  await context.close();
  return { ...asked, curl };
}

// The other pages, below the prefix and in the dark: what they load, try and are painted with.
async function others() {
  const context = await browser.newContext({ colorScheme: "dark" }), page = await context.newPage(), seen = { outside: 0 };
  page.setDefaultTimeout(120000);
  page.on("pageerror", (error) => errors.push(error.message));
  page.on("console", (message) => { if (message.type() === "error" && !/status of 40[14]/.test(message.text())) errors.push(message.text()); });
  page.on("request", (request) => { if (!/^(data|blob):/.test(request.url()) && !request.url().startsWith(url)) seen.outside++; });
  await page.addInitScript((held) => window.sessionStorage.setItem("token", held), token);
  await page.goto(url + "docs");
  await page.locator(".opblock").first().waitFor();
  seen.paper = await page.evaluate(() => getComputedStyle(document.body).backgroundColor.match(/\d+/g).map(Number));
  await page.locator("#operations-health-livez_livez_get .opblock-summary-control").click();
  await page.getByRole("button", { name: "Try it out" }).click();
  await page.getByRole("button", { name: "Execute" }).click();
  seen.tried = await page.locator(".live-responses-table .response .response-col_status").first().textContent();
  await page.goto(url + "demo/choose?model=shop");
  await page.fill("#token", token);
  await page.click("#locked button");
  await page.waitForSelector("#yes:not([disabled])");
  await page.goto(url + "edge/demo?model=model-1");
  await page.waitForFunction(() => /^[12]$/.test(document.getElementById("release").textContent));
  seen.scope = await page.evaluate(async () => (await navigator.serviceWorker.ready).scope);
  await page.evaluate(() => caches.open("edge-page").then((kept) => kept.match("demo")).then((held) => held.text()));
  await page.locator("#models").selectOption("model-2");
  await page.getByText("Nothing is published for devices yet").waitFor();
  seen.address = page.url();
  await context.close();
  return seen;
}

const stream = await open(true), polls = await open(false), beside = await others();
console.log(JSON.stringify({ stream, polls, beside, errors }));
await browser.close();
