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

const stream = await open(true), polls = await open(false);
console.log(JSON.stringify({ stream, polls, errors }));
await browser.close();
