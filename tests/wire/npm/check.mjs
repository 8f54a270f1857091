// The official npm SDK against a running gateway: node check.mjs BASE_URL. Prints one JSON line of what was seen.
import { File as BufferFile } from "node:buffer";

globalThis.File ??= BufferFile; // Node 18, which Debian 12 ships, has no global File
const { default: OpenAI, toFile } = await import("openai");

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "ping pong" }];
const seen = {};

const reply = await client.chat.completions.create({ model: "demo/echo", messages });
seen.chat = reply.choices[0].message.content;

seen.stream = "";
for await (const chunk of await client.chat.completions.create({ model: "demo/echo", messages, stream: true })) {
  seen.stream += chunk.choices[0]?.delta?.content ?? "";
}

const tools = [{ type: "function", function: { name: "add", parameters: { type: "object", properties: { a: { type: "integer" } }, required: ["a"] } } }];
const final = await client.chat.completions.stream({ model: "demo/tools", messages, tools }).finalChatCompletion();
seen.tool = final.choices[0].message.tool_calls[0].function.name;

const embedded = await client.embeddings.create({ model: "demo/echo", input: "x" });
seen.embedding = typeof embedded.data[0].embedding[0];

const response = await client.responses.create({ model: "demo/echo", input: "ping" });
seen.response = response.output_text;

const speech = await client.audio.speech.create({ model: "demo/echo", voice: "alloy", input: "hello" });
seen.audio = (await speech.arrayBuffer()).byteLength > 44;

const file = await client.files.create({ file: await toFile(Buffer.from("{}\n"), "a.jsonl"), purpose: "batch" });
seen.file = file.filename;

seen.models = (await client.models.list()).data.some((model) => model.id === "demo/echo");

try {
  await client.chat.completions.create({ model: "demo/error-429", messages });
} catch (error) {
  seen.error = [error.constructor.name, error.status];
}
try {
  for await (const _ of await client.chat.completions.create({ model: "demo/cut-mid-stream", messages, stream: true }));
  seen.cut = "ended as if it were whole";
} catch (error) {
  seen.cut = error.constructor.name;
}
console.log(JSON.stringify(seen));
