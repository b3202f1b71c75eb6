// What a client of the package ws sees: all messages and the end, as a line of JSON.
const { createRequire } = require("node:module");
const WebSocket = createRequire(process.argv[2] + "/")("ws");

const [, , , url, sent, leaves] = process.argv;
const socket = new WebSocket(url, ["modelserve.v1"]);
const messages = [];

function end(how) {
  console.log(JSON.stringify({ messages, ...how }));
  process.exit(0);
}

socket.on("open", () => {
  for (const message of JSON.parse(sent)) {
    socket.send(Array.isArray(message) ? Buffer.from(message) : message);
  }
});
socket.on("message", (data, isBinary) => {
  messages.push(isBinary ? [...data] : data.toString());
  if (leaves === "terminates") { socket.terminate(); end({}); }
  if (leaves === "closes") socket.close(1001, "bye");
});
socket.on("unexpected-response", (_, response) => end({ status: response.statusCode }));
socket.on("error", () => {});
socket.on("close", (code, reason) =>
  end({ code, reason: reason.toString(), protocol: socket.protocol }));
