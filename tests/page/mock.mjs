// A small server that shows the page and speaks as much of the API as the page uses. What it answers depends on the last prompt.

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";

const PAGE = new URL("../../crates/serve/src/page/index.html", import.meta.url);

/** The strictest policy that the page must live with: its one script and its one style by their hashes. */
export function contentSecurityPolicy(html) {
  const hash = (tag) => {
    const blocks = [...html.matchAll(new RegExp(`<${tag}>([^]*?)</${tag}>`, "g"))];
    if (blocks.length !== 1) throw new Error(`the page has ${blocks.length} <${tag}> blocks, 1 is expected`);
    return `'sha256-${createHash("sha256").update(blocks[0][1]).digest("base64")}'`;
  };
  return `default-src 'none'; script-src ${hash("script")}; style-src ${hash("style")}; connect-src 'self'; img-src data:; ` +
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
}

export const HOSTILE = `<img src=x onerror="window.pwned=1"><script>window.pwned=1</script><a href="javascript:window.pwned=1">x</a>\n` +
  `\u202Egnp.exe\u202C \u0645\u0631\u062D\u0628\u0627 ${"W".repeat(1000)}\u0000\u001b[31m`;
export const SPLIT = "Zürich, 日本 and 👩‍🚀: each char­acter arrives in pieces";

const ANSWERS = {
  base: "Patient John Smith was seen on 12 March 2019 in Leeds. He should rest.",
  "notes-lora": "Patient [NAME] was seen on [DATE] in [CITY]. He should rest.",
};

/** Bytes of a text cut so that some tokens hold a part of a character, as byte-level tokenizers do. */
function tokensOf(text) {
  const tokens = [];
  for (const word of text.match(/\s?[^\s]+|\s+/gu) ?? []) {
    const bytes = Buffer.from(word);
    const size = bytes.length > 8 ? 2 : bytes.length;
    for (let at = 0; at < bytes.length; at += size) tokens.push(bytes.subarray(at, at + size));
  }
  return tokens;
}

const asLogprob = (bytes, p) => ({ token: bytes.toString(), bytes: [...bytes], logprob: Math.log(p) });

/** A probability that depends on the place, so that all shades come up. */
function logprobsOf(bytes, index) {
  const p = [0.98, 0.95, 0.8, 0.55, 0.3, 0.08][index % 6];
  const others = [" the", "\n", " [DATE]", "\u202E"].map((text, rank) => asLogprob(Buffer.from(text), ((1 - p) * 0.9) / 2 ** (rank + 1)));
  return { ...asLogprob(bytes, p), top_logprobs: [asLogprob(bytes, p), ...others].sort((a, b) => b.logprob - a.logprob) };
}

/** The chunks of an answer, as the server would send them. Characters that are not whole yet are held back, as are their texts. */
function chunksOf(request, text, finish) {
  const shape = (choices, more = {}) => ({ id: "chatcmpl-1", object: "chat.completion.chunk", created: 1, model: request.model, choices, ...more });
  const chunks = [shape([{ index: 0, delta: { role: "assistant", content: "" }, logprobs: null, finish_reason: null }])];
  const decoder = new TextDecoder();
  const tokens = tokensOf(text);
  tokens.forEach((bytes, index) => {
    const content = decoder.decode(bytes, { stream: true });
    const logprobs = request.logprobs ? { content: [logprobsOf(bytes, index)] } : null;
    chunks.push(shape([{ index: 0, delta: { content }, logprobs, finish_reason: null }]));
  });
  const end = { token: "<|im_end|>", bytes: [...Buffer.from("<|im_end|>")], logprob: Math.log(0.6), top_logprobs: [] };
  chunks.push(shape([{ index: 0, delta: {}, logprobs: request.logprobs ? { content: [end] } : null, finish_reason: finish }]));
  const usage = { prompt_tokens: 21, completion_tokens: tokens.length + 1, total_tokens: tokens.length + 22, prompt_tokens_details: { cached_tokens: 8 } };
  if (request.stream_options?.include_usage) chunks.push(shape([], { usage }));
  return chunks;
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Start the server. `requests` has what was asked, `cancelled` counts answers that the client left, `mostAtOnce` those that ran together. */
export async function startMock({ models, key = "" } = {}) {
  const html = readFileSync(PAGE, "utf8");
  const mock = { key, requests: [], origins: new Set(), cancelled: 0, atOnce: 0, mostAtOnce: 0, loading: 0, models: models ?? [{ id: "base", parent: null }, { id: "notes-lora", parent: "base" }] };
  const fail = (response, status, error, headers = {}) => {
    response.writeHead(status, { "Content-Type": "application/json", ...headers }).end(JSON.stringify({ error }));
  };

  async function chat(request, response) {
    const prompt = request.messages.at(-1).content;
    if (prompt === "busy") return fail(response, 429, { message: "8 requests are waiting", type: "rate_limit_error" }, { "Retry-After": "2" });
    if (prompt === "gone") return fail(response, 404, { message: `no model \`${request.model}\``, type: "not_found_error", code: "model_not_found" });
    if (prompt === "bad") return fail(response, 400, { message: "<b>must</b> be at most 2", type: "invalid_request_error", param: "temperature" });
    if (prompt === "proxy") return response.writeHead(200, { "Content-Type": "text/html" }).end("<h1>login</h1>");
    if (prompt === "crash") return response.destroy();
    const text = { hostile: HOSTILE, split: SPLIT, slow: "word ".repeat(400), nothing: "" }[prompt] ?? ANSWERS[request.model] ?? "Hello.";
    const events = chunksOf(request, text, prompt === "long" ? "length" : "stop").map((chunk) => `data: ${JSON.stringify(chunk)}\n\n`);
    if (prompt === "midway") events.splice(5, Infinity, `data: ${JSON.stringify({ error: { message: "out of memory", code: 500 } })}\n\n`);
    else if (prompt === "cut") events.splice(5, Infinity);
    else events.push("data: [DONE]\n\n");
    response.writeHead(200, { "Content-Type": "text/event-stream" });
    let open = true;
    response.on("close", () => { if (!response.writableFinished) { open = false; mock.cancelled += 1; } });
    if (prompt === "split") { // cut anywhere: inside lines, inside CRLF, inside characters; with comments between
      const bytes = Buffer.from(`: hello\r\n\r\n${events.join(": still here\n\n")}`.replaceAll("\n\n", "\r\n\r\n"));
      for (let at = 0; at < bytes.length && open; at += 7) {
        response.write(bytes.subarray(at, at + 7));
        await new Promise((resolve) => setImmediate(resolve));
      }
    } else {
      for (const event of events) {
        if (!open) return undefined;
        response.write(event);
        await pause(prompt === "slow" ? 40 : 4);
      }
    }
    return response.end();
  }

  const server = createServer(async (message, response) => {
    if (message.url === "/") {
      return response.writeHead(200, { "Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": contentSecurityPolicy(html) }).end(html);
    }
    if (mock.loading > 0) {
      mock.loading -= 1;
      return fail(response, 503, { message: "the model is being loaded" }, { "Retry-After": "1" });
    }
    if (mock.key && message.headers.authorization !== `Bearer ${mock.key}`) {
      return fail(response, 401, { message: "no valid API key", type: "authentication_error", code: "invalid_api_key" });
    }
    if (message.url === "/v1/models") {
      const data = mock.models.map((model) => ({ created: 1, object: "model", owned_by: "taper", ...model }));
      return response.writeHead(200, { "Content-Type": "application/json" }).end(JSON.stringify({ object: "list", data }));
    }
    if (message.url === "/v1/chat/completions" && message.method === "POST") {
      const parts = [];
      for await (const part of message) parts.push(part);
      const request = JSON.parse(Buffer.concat(parts).toString());
      mock.requests.push(request);
      mock.origins.add(message.headers.origin);
      mock.mostAtOnce = Math.max(mock.mostAtOnce, (mock.atOnce += 1));
      return chat(request, response).finally(() => { mock.atOnce -= 1; });
    }
    return fail(response, 404, { message: `no route ${message.url}` });
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  mock.url = `http://127.0.0.1:${server.address().port}/`;
  mock.close = () => { server.closeAllConnections(); server.close(); };
  return mock;
}
