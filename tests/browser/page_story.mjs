// An operator on the page of the service, in Chromium. Prints what it saw; the test judges it.
// node page_story.mjs URL CHROMIUM PREDICT_TOKEN ADMIN_TOKEN [FOLDER_OF_SCREENSHOTS]

import { createRequire } from "node:module";
import { readFileSync } from "node:fs";

const require = createRequire(process.env.PLAYWRIGHT ?? import.meta.url);
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const [url, executablePath, predict, admin, folder] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath, headless: true, args: ["--no-sandbox", "--disable-gpu", "--disable-quic"] });
const context = await browser.newContext({ viewport: { width: 1200, height: 900 } });
const page = await context.newPage(), errors = [], findings = [], acts = {};
page.on("pageerror", (error) => errors.push(error.message));
// A status of 401 or 403 is how the page learns that it needs a token; Chromium logs it.
page.on("console", (message) => { if (message.type() === "error" && !/status of 40[13]/.test(message.text())) errors.push(message.text()); });
page.setDefaultTimeout(120000);

async function look(name) {
  await page.evaluate(axe);
  const found = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  for (const v of found.violations)
    if (["serious", "critical"].includes(v.impact)) findings.push(`${name}: ${v.id}: ${v.nodes.map((n) => n.html.slice(0, 160)).join(" | ")}`);
  if (folder) await page.screenshot({ path: `${folder}/${name}.png`, fullPage: true });
}

async function everywhere(name) {
  for (const [size, width] of [["wide", 1200], ["phone", 390]])
    for (const colorScheme of ["light", "dark"]) {
      await page.emulateMedia({ colorScheme });
      await page.setViewportSize({ width, height: 900 });
      await look(`${name}-${size}-${colorScheme}`);
      const over = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
      if (over > 0) errors.push(`${name} at ${width} px is ${over} px too wide`);
    }
  await page.emulateMedia({ colorScheme: "light" });
  await page.setViewportSize({ width: 1200, height: 900 });
}

const card = page.locator("section.card:visible").last();
const press = (name) => card.getByRole("button", { name, exact: true }).first().click();
const state = (pattern) => page.waitForFunction((p) => new RegExp(p).test(document.getElementById("act-state").textContent), pattern);
const closed = () => page.waitForFunction(() => !document.getElementById("act").open);

// What it says before, and what came of it; every act waits for a yes.
async function act(name, done) {
  await press(name);
  const said = await page.locator("#act-text").textContent();
  await page.locator("#act-do").click();
  await state(done);
  acts[name] = [said, await page.locator("#act-state").textContent()];
  await page.locator("#act-cancel").click();
  await closed();
}

await page.goto(url);
await page.locator("#token").fill(predict);
await page.locator("#access button").click();
await page.waitForFunction(() => document.querySelectorAll("#rows tr").length > 1);
const rows = await page.locator("#rows tr").count();
await everywhere("overview");

await page.getByRole("button", { name: "model-1", exact: true }).click();
await card.getByText("distance (PSI)").waitFor();
await card.getByText("Release 2 is reported").waitFor();  // releases are asked for by themselves
const texts = (cells) => cells.evaluateAll((nodes) => nodes.map((node) => node.textContent));
const moved = await texts(card.locator(".features tbody tr").first().locator("td"));
const labels = await texts(card.locator(".classes tbody td:first-child"));
const slices = await card.locator(".slices tbody tr").evaluateAll((rows) => rows.map((row) => [...row.cells].map((cell) => cell.textContent)));
const influence = await texts(card.locator(".closer .of"));
const calibration = await card.locator("svg.calibration").getAttribute("aria-label");
const releases = await card.locator(".released tbody tr").evaluateAll((rows) => rows.map((row) => [...row.cells].map((cell) => cell.textContent)));
const devices = await card.locator(".releases").textContent();
const idle = await card.locator(".score figure").isHidden();  // nothing has come since it was opened
const axes = await page.evaluate(() => { const charts = [...cards.get("model-1").charts]; return charts.map((chart) => chart.axes.slice(1).map(({ label }) => (typeof label === "function" ? label() : label))); });
await everywhere("closer");

// The report on what the chart shows: it asks for a token, and opens as a page of its own.
const span = async () => (await card.locator(".report .row").textContent()).replace("Make a report", "");
const report = { of: await span() };
const chart = card.locator(".u-over").first(), box = await chart.boundingBox();
await page.mouse.move(box.x + box.width * 0.3, box.y + 40);
await page.mouse.down();
await page.mouse.move(box.x + box.width * 0.7, box.y + 60, { steps: 5 });
await page.mouse.up();
await card.getByText("as selected in the chart").waitFor();
report.selected = await span();
if (folder) await page.screenshot({ path: `${folder}/selected.png`, fullPage: true });
await page.emulateMedia({ colorScheme: "dark" });  // the chart is drawn anew, and stays where it is
await page.waitForTimeout(100);
report.redrawn = await span();
await page.emulateMedia({ colorScheme: "light" });
await chart.dblclick();
await card.getByText("drag over a part").waitFor();
report.all = await span();
await press("Make a report of model-1");
await card.getByLabel("Admin token").fill(admin);
await card.getByRole("button", { name: "Use it" }).click();
await card.getByRole("link", { name: "Open the report" }).waitFor({ timeout: 240000 });
await look("report-made");
const [opened] = await Promise.all([context.waitForEvent("page"), card.getByRole("link", { name: "Open the report" }).click()]);
opened.on("console", (message) => { if (message.type() === "error") errors.push("report: " + message.text()); });
await opened.getByText("One page, nothing loaded from elsewhere").waitFor();
Object.assign(report, { title: await opened.title(), text: await opened.locator("main").textContent() });
if (folder) await opened.screenshot({ path: `${folder}/report.png`, fullPage: true });
await opened.close();
await page.reload();  // the token for admin goes with the page
await page.getByRole("button", { name: "All models" }).click();

await page.getByRole("button", { name: "model-0", exact: true }).click();
await card.locator("details.operate summary").click();
await card.getByLabel("Admin token").waitFor();
await look("asks-for-admin");
await card.getByLabel("Admin token").fill("nobody-has-this-token-0123456789");
await card.getByRole("button", { name: "Use it" }).click();
await card.getByText("the token sent is not known").waitFor();
await card.getByLabel("Admin token").fill(admin);
await card.getByRole("button", { name: "Use it" }).click();
await card.getByText("Learning is on.").waitFor();
await everywhere("operate");

await press("Freeze model-0");
await look("dialog");
const focus = await page.evaluate(() => document.activeElement.id);
await page.keyboard.press("Escape");
await closed();
await act("Freeze model-0", "seen it");
await card.getByText("Learning is frozen.").waitFor();
await act("Unfreeze model-0", "seen it");
await card.getByText("Learning is on.").waitFor();
await act("Release held-0", "released");
await act("Discard all of bot", "discarded");
await card.getByText("No event waits for a decision.").waitFor();
// A long journal is not looked through at once, and the page does not say that nothing waits.
await page.route("**/quarantine?*", (route) => route.fulfill({ json: { events: [], cursor: "0:0:0", left: 7, removed: 0 } }));
const name = await card.locator(".operate .kept tbody tr").last().locator("td").first().textContent();
await act(`Pin ${name}`, "Pinned");
await card.getByRole("button", { name: `Unpin ${name}` }).waitFor();
await card.getByText("No event in the rows searched so far.").waitFor();
await card.getByText("7 rows not searched yet").waitFor();
await page.unroute("**/quarantine?*");
await press("Search further in model-0");
await card.getByText("No event waits for a decision.").waitFor();
await act(`Roll back to ${name}`, "undone");
await press("Watch for a minute the requests to model-0");
const ask = (i) => fetch(`${url}/v1/models/model-0/predict`, { method: "POST", headers: { authorization: `Bearer ${predict}` }, body: JSON.stringify({ features: { x: i, y: 0.5 } }) });
for (let i = 0; i < 60 && !(await card.locator(".requests tbody tr").count()); i++) { await ask(i); await page.waitForTimeout(250); }
const live = await texts(card.locator(".requests tbody tr").first().locator("td"));
await everywhere("after");

// Choices as they come.
await page.getByRole("button", { name: "All models" }).click();
await page.getByRole("button", { name: "shop", exact: true }).click();
await card.locator("details.operate summary").click();
await press("Watch for a minute the requests to shop");
const shop = (path, body) => fetch(`${url}/v1/models/shop/${path}`, { method: "POST", headers: { authorization: `Bearer ${admin}` }, body: JSON.stringify(body) }).then((answer) => answer.json());
for (let i = 0; i < 120 && (await card.locator(".requests tbody tr").count()) < 2; i++) {
  const { id } = await shop("choose", { context: { hour: i }, actions: [{ id: "news" }, { id: "sport" }] });
  await shop("reward", { id, reward: 1 });
  await page.waitForTimeout(250);
}
const came = await card.locator(".requests tbody tr").evaluateAll((rows) => rows.map((row) => [...row.cells].map((cell) => cell.textContent)));
const choices = ["reward", "choice"].map((what) => came.find((row) => row[1] === what));
await everywhere("choices");

// A challenger is let serve.  It needs processes beside the service, so what the service would say of it stands in.
const rival = { state: "learning", learner: "auto", verdict: "better", rows: 1200, behind_rows: 3, interval: [0.01, 0.05], challenger: 0.91, champion: 0.88, incident: null };
const promoted = { asked: [] };
let decided;
await page.route("**/v1/live", (route) => route.fulfill({ status: 204 }));
await page.route("**/v1/models", async (route) => {
  const response = await route.fetch(), json = await response.json();
  for (const model of json.models) if (model.model === "model-2") model.challenger = rival;
  await route.fulfill({ response, json });
});
await page.route("**/promote", async (route) => {
  promoted.asked.push([new URL(route.request().url()).pathname, route.request().postDataJSON()]);
  await new Promise((done) => { decided = done; });
  await route.fulfill({ json: {} });
});
await page.goto(url + "#model-2");
await page.reload();
await card.locator("details.operate summary").click();
await card.getByLabel("Admin token").fill(admin);
await card.getByRole("button", { name: "Use it" }).click();
await press("Promote the challenger of model-2");
promoted.text = await page.locator("#act-text").textContent();
await page.locator("#act-cancel").click();
await closed();
promoted.before = promoted.asked.length;
await press("Promote the challenger of model-2");
await page.locator("#act-do").click();
await page.locator("#act-progress").waitFor();
await page.keyboard.press("Escape");  // what is under way is not left
promoted.open = await page.evaluate(() => document.getElementById("act").open);
await everywhere("promoting");
decided();
await state("Decided");
promoted.came = await page.locator("#act-state").textContent();
promoted.progress = await page.locator("#act-progress").isVisible();

// Where a package of the extra is missing no report can be asked for, and the page says why.
await page.route(`${url}/`, async (route) => {
  const response = await route.fetch();
  await route.fulfill({ response, body: (await response.text()).replace('LACKS = ""', 'LACKS = "matplotlib. Install it where it runs: pip"') });
});
await page.reload();
const make = card.getByRole("button", { name: "Make a report of model-2" });
await make.waitFor();
const lacks = [await make.isDisabled(), await make.getAttribute("title"), await card.locator(".report").textContent()];
await page.unroute(`${url}/`);

const paint = await page.evaluate(() => performance.getEntriesByName("first-contentful-paint").map((e) => e.startTime)[0]);
console.log(JSON.stringify({ rows, errors, findings, acts, name, focus, paint, moved, labels, slices, calibration, influence, idle, axes, live, releases, devices, report, choices, promoted, lacks }));
await browser.close();
