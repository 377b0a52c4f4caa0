// Somebody clicks on the page of choices, in Chromium. Prints what it saw; the test judges it.
// node choose_story.mjs URL CHROMIUM TOKEN CLICKS [FOLDER_OF_SCREENSHOTS]

import { createRequire } from "node:module";
import { readFileSync } from "node:fs";

const require = createRequire(process.env.PLAYWRIGHT ?? import.meta.url);
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const [url, executablePath, token, clicks, folder] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath, headless: true, args: ["--no-sandbox", "--disable-gpu", "--disable-quic"] });
const page = await browser.newPage({ viewport: { width: 1200, height: 900 } });
const errors = [], findings = [];
page.on("pageerror", (error) => errors.push(error.message));
// A status of 401 is how the page learns that it needs a token, and one request is cut off below; Chromium logs both.
page.on("console", (message) => { if (message.type() === "error" && !/status of 401|ERR_FAILED/.test(message.text())) errors.push(message.text()); });
page.setDefaultTimeout(120000);

await page.goto(`${url}/demo/choose`);
await page.fill("#token", token);
await page.click("#locked button");
await page.waitForSelector("#yes:not([disabled])");
const fresh = await page.evaluate(() => [document.querySelectorAll(".bars .first").length, document.getElementById("chart").hasAttribute("hidden")]);
await page.click("#no");
await page.waitForFunction(() => document.getElementById("clicks").textContent === "1");
await page.route("**/choose", (route) => route.abort());
await page.click("#no");
await page.waitForSelector("#problem:not([hidden])");
await page.unroute("**/choose");
await page.click("#yes"); // asks again: the choice before has its reward
await page.waitForSelector("#problem", { state: "hidden" });
await page.click("#robot");
await page.waitForFunction((n) => Number(document.getElementById("clicks").textContent) >= n, Number(clicks));
await page.click("#robot");

async function everywhere(name) {
  for (const width of [1200, 390])
    for (const colorScheme of ["light", "dark"]) await look(name, width, colorScheme);
}

async function look(name, width, colorScheme) {
  await page.emulateMedia({ colorScheme });
  await page.setViewportSize({ width, height: 900 });
  await page.evaluate(axe);
  const found = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  for (const v of found.violations)
    if (["serious", "critical"].includes(v.impact)) findings.push(`${name} ${width} ${colorScheme}: ${v.id}: ${v.nodes[0].html.slice(0, 160)}`);
  const over = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
  if (over > 0) errors.push(`${name} at ${width} px is ${over} px too wide`);
  if (folder) await page.screenshot({ path: `${folder}/${name}-${width}-${colorScheme}.png`, fullPage: true });
}

await everywhere("choose");
const best = await page.evaluate(() => ["morning", "evening"].map((id) => document.querySelector(`#${id} .first`).textContent));
const share = await page.textContent("#share");
await page.goto(url);
await page.locator("#access:not([hidden]), section.card").first().waitFor();
if (await page.locator("#access:not([hidden])").count()) {
  await page.fill("#token", token);
  await page.click("#access button");
}
await page.locator(".classes tbody tr").first().waitFor();
const actions = await page.locator(".classes tbody td:first-child").allTextContents();
const demo = await page.locator("section.card:visible a", { hasText: "demo page" }).getAttribute("href");
const told = await page.locator("section.card:visible").textContent();
await everywhere("status");
console.log(JSON.stringify({ errors, findings, best, share, actions, told, fresh, demo }));
await browser.close();
