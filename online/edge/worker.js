// Keeps the page and its scripts, so that it opens without a network. Data is not its business:
// the client keeps releases and feedback itself.

const KEPT = "edge-page", PARTS = ["demo", "demo.js", "client.js", "trust.js", "edge.js"];

self.addEventListener("install", (event) => {
  self.skipWaiting();
  event.waitUntil(caches.open(KEPT).then((cache) => cache.addAll(PARTS)));
});

self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

// The network's is newer; without one, what was kept.
async function answer(request, name) {
  const cache = await caches.open(KEPT);
  try {
    const found = await fetch(request);
    if (found.ok) await cache.put(name, found.clone());
    return found;
  } catch (error) {
    return (await cache.match(name)) ?? Promise.reject(error);
  }
}

self.addEventListener("fetch", (event) => {
  const { pathname } = new URL(event.request.url), name = pathname.split("/").pop();
  const here = new URL(self.registration.scope).pathname + name;
  if (event.request.method === "GET" && pathname === here && PARTS.includes(name))
    event.respondWith(answer(event.request, name));
});
