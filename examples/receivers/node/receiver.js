// Takes seckill's events: node receiver.js (PORT, and WEBHOOK_SECRETS separated by commas).
"use strict";
const crypto = require("node:crypto");
const http = require("node:http");

const SECRETS = process.env.WEBHOOK_SECRETS.split(",");
const TOLERANCE_S = 300;
const BODY_BYTES_MAX = 4_000_000;

// In your mall: a table with a unique key, written in the same transaction as the work itself.
const seen = new Set();

function isGenuine(header, body) {
  const parts = header.split(",").map((part) => part.split("="));
  const at = parts.find(([name]) => name === "t")?.[1] ?? "";
  if (!/^[0-9]{1,12}$/.test(at) || Math.abs(Date.now() / 1000 - Number(at)) > TOLERANCE_S) {
    return false;
  }
  const marks = parts.filter(([name]) => name === "v1").slice(0, 10);
  let genuine = false; // While a secret is replaced, each side may know two: one match is enough.
  for (const secret of SECRETS) {
    const hmac = crypto.createHmac("sha256", secret).update(`${at}.`).update(body);
    const right = Buffer.from(hmac.digest("hex"));
    for (const [, mark] of marks) {
      const given = Buffer.from(mark ?? "");
      if (given.length === right.length && crypto.timingSafeEqual(given, right)) genuine = true;
    }
  }
  return genuine;
}

function handle(event) {
  console.log("handled", event.id, event.kind);
}

const server = http.createServer((request, response) => {
  const chunks = [];
  let size = 0;
  request.on("data", (chunk) => (size += chunk.length) <= BODY_BYTES_MAX && chunks.push(chunk));
  request.on("end", () => {
    const body = Buffer.concat(chunks);
    if (!isGenuine(request.headers["seckill-signature"] ?? "", body)) {
      return response.writeHead(401).end();
    }
    try {
      const event = JSON.parse(body);
      if (!seen.has(event.id)) handle(event); // From the body: the headers are not signed.
      seen.add(event.id);
      response.writeHead(204).end();
    } catch (error) {
      response.writeHead(500).end(); // It comes again.
    }
  });
});
server.requestTimeout = 10_000;
server.listen(Number(process.env.PORT), "127.0.0.1");
