// What node's fetch does with a streamed request: each result is printed as a line of JSON.
const [, , url, step, key] = process.argv;
const encoder = new TextEncoder();
const decoder = new TextDecoder();

const row = (x) => encoder.encode(JSON.stringify({ key, x }) + "\n");
const print = (value) => console.log(JSON.stringify(value));

async function send(body, options = {}) {
  const headers = { "content-type": "application/x-ndjson" };
  return await fetch(url, { method: "POST", body, duplex: "half", headers, ...options });
}

function queue() {
  let control;
  const stream = new ReadableStream({ start: (given) => { control = given; } });
  return [stream, control];
}

async function* lines(response) {
  let text = "";
  for await (const piece of response.body) {
    text += decoder.decode(piece, { stream: true });
    const whole = text.split("\n");
    text = whole.pop();
    yield* whole.map((line) => JSON.parse(line));
  }
}

const steps = {
  // The next row is sent when the result of the last has come.
  async alternate() {
    const [stream, control] = queue();
    control.enqueue(row(1));
    const response = await send(stream);
    let next = 2;
    for await (const item of lines(response)) {
      print(item);
      if (next === 2) control.enqueue(encoder.encode("no JSON\n"));
      else if (next <= 5) control.enqueue(row(next));
      else if (next === 6) control.close();
      next++;
    }
  },
  async abort() {
    const [stream, control] = queue();
    control.enqueue(row(1));
    const abort = new AbortController();
    const response = await send(stream, { signal: abort.signal });
    try {
      for await (const item of lines(response)) {
        print(item);
        abort.abort();
      }
    } catch (error) {
      print(error.name);
    }
  },
  async refused() {
    const [stream, control] = queue();
    control.enqueue(row(1));
    const response = await send(stream);
    print([response.status, await response.json()]);
    try { control.close(); } catch { /* undici has cancelled it */ }
  },
  async many() {
    let sent = 0;
    const stream = new ReadableStream({
      pull(control) {
        if (sent === 20000) return control.close();
        let rows = "";
        for (let n = 0; n < 100; n++) rows += decoder.decode(row(sent++));
        control.enqueue(encoder.encode(rows));
      },
    });
    let count = 0;
    for await (const item of lines(await send(stream))) {
      if (item.y !== 2 * count) print(["out of order", count, item]);
      count++;
    }
    print(count);
  },
};

await steps[step]();
process.exit(0);
