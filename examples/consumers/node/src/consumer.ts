/** Follows ticks with XREAD: JSON lines on standard output, a position that survives a restart. */

import { existsSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { Redis } from "ioredis";
import { batch, decode, tick, type Fields } from "./wire.js";

const BLOCK_MS = 1000; // also how soon it stops when told
const COUNT = 100;

type Entry = [id: Buffer, fields: Buffer[]];
type Read = Map<string, Entry[]>;

function warn(text: string): void {
  process.stderr.write(`warning: ${text}\n`);
}

/** The epoch of each market and the last id read of each stream, in a file if there is one. */
class Position {
  epochs: Record<string, string> = {};
  last: Record<string, string> = {};

  constructor(private readonly file?: string) {
    if (file && existsSync(file)) Object.assign(this, JSON.parse(readFileSync(file, "utf8")));
  }

  /** Replaces the file as a whole: a reader finds the old position or the new one. */
  store(): void {
    if (!this.file) return;
    writeFileSync(`${this.file}.new`, JSON.stringify({ epochs: this.epochs, last: this.last }));
    renameSync(`${this.file}.new`, this.file);
  }
}

/** Waits until standard output has taken the text. */
function print(text: string): Promise<void> {
  return new Promise((resolve, reject) => {
    process.stdout.write(text, (error) => (error ? reject(error) : resolve()));
  });
}

/** Reads streams of ticks, or feeds of markets, one batch at a time. */
class Consumer {
  private readonly markets: string[];
  private readonly toldGone = new Map<string, string>();
  private stopping = false;

  constructor(
    private readonly server: Redis,
    private readonly prefix: string,
    private readonly streams: Map<string, string>, // stream to its code; a feed has none
    private readonly position: Position,
  ) {
    const markets = [...streams.keys()].map((stream) => stream.slice(1).split(/[:}]/)[1]!);
    this.markets = [...new Set(markets)].sort();
  }

  /** Waits for the next entries of any stream, then looks at what was passed over. */
  private async read(blockMs: number): Promise<Read> {
    const keys = [...this.streams.keys()];
    const last = keys.map((stream) => this.position.last[stream] ?? "0-0");
    const answer = await this.server.xreadBuffer(
      "COUNT",
      COUNT,
      "BLOCK",
      blockMs,
      "STREAMS",
      ...keys,
      ...last,
    );
    const rows = (answer ?? []) as [Buffer, Entry[]][];
    const read: Read = new Map(rows.map(([stream, entries]) => [stream.toString(), entries]));
    await this.check([...read.keys()]);
    return read;
  }

  /**
   * Warns of a new epoch and of positions that are gone: XREAD itself says nothing. Behind a read,
   * for trimming goes from the oldest: what was read last is still there, so nothing between it
   * and the news was trimmed.
   */
  private async check(streams: string[]): Promise<void> {
    const passed = streams.filter((stream) => this.position.last[stream]);
    const [epochs, found] = await Promise.all([
      Promise.all(this.markets.map((one) => this.server.get(`{${this.prefix}:${one}}:epoch`))),
      Promise.all(
        passed.map((stream) => {
          const last = this.position.last[stream]!;
          return this.server.xrange(stream, last, "+", "COUNT", 1);
        }),
      ),
    ]);
    this.markets.forEach((market, at) => {
      const known = this.position.epochs[market];
      const now = epochs[at];
      if (known && now && known !== now) {
        warn(`${market}: new epoch ${now} after ${known}: ticks may be lost or told again`);
      }
      if (now) this.position.epochs[market] = now;
    });
    passed.forEach((stream, at) => {
      const last = this.position.last[stream]!;
      const first = found[at]![0]?.[0] ?? "nothing";
      if (first === last || this.toldGone.get(stream) === last) return;
      this.toldGone.set(stream, last);
      warn(`${stream}: position ${last} is gone, ${first} follows: ticks may be missing`);
    });
  }

  /** The ticks of a batch; a feed's entry with bars (`c1`) has none. */
  private *ticks(read: Read): Generator<Fields> {
    for (const [stream, entries] of read) {
      const code = this.streams.get(stream);
      for (const [id, [field, value]] of entries) {
        if (code) yield tick(code, id.toString(), value!);
        else if (field!.toString() === "b1") yield* batch(value!);
      }
    }
  }

  stop(): void {
    this.stopping = true;
  }

  /** Prints ticks until told to stop, or until none came for so long. */
  async run(untilIdleMs: number): Promise<void> {
    await this.check([...this.streams.keys()]);
    let heard = performance.now();
    const blockMs = Math.min(BLOCK_MS, Math.max(1, Math.floor(untilIdleMs))); // 0 would be for ever
    while (!this.stopping) {
      const read = await this.read(blockMs);
      if (read.size === 0) {
        if (performance.now() - heard >= untilIdleMs) break;
        continue;
      }
      let lines = "";
      for (const one of this.ticks(read)) lines += `${JSON.stringify(one)}\n`;
      // First the ticks, then the position: see ../README.md.
      await print(lines);
      for (const [stream, entries] of read) {
        this.position.last[stream] = entries.at(-1)![0].toString();
      }
      this.position.store();
      heard = performance.now();
    }
  }
}

function decodeVectors(file: string): void {
  const { vectors } = JSON.parse(readFileSync(file, "utf8")) as {
    vectors: { schema: string; name: string; bytes: string }[];
  };
  for (const { schema, name, bytes } of vectors) {
    console.log(JSON.stringify({ name, value: decode(schema, Buffer.from(bytes, "hex")) }));
  }
}

async function main(): Promise<void> {
  const { values, positionals: codes } = parseArgs({
    allowPositionals: true,
    options: {
      url: { type: "string", default: "redis://127.0.0.1:6379" },
      prefix: { type: "string", default: "qmt" },
      market: { type: "string", multiple: true, default: [] },
      position: { type: "string" },
      "until-idle": { type: "string", default: "Infinity" },
      "decode-vectors": { type: "string" },
    },
  });
  if (values["decode-vectors"]) return decodeVectors(values["decode-vectors"]);
  const { prefix, market: markets } = values;
  if (codes.length > 0 === markets.length > 0) {
    throw new Error("name codes, or markets with --market");
  }
  const streams = new Map(markets.map((market) => [`{${prefix}:${market}}:feed`, ""]));
  for (const code of codes) {
    streams.set(`{${prefix}:${code.slice(code.lastIndexOf(".") + 1)}}:tick:${code}`, code);
  }
  // No silent reconnecting: who starts this again goes on from the position.
  const server = new Redis(values.url, {
    lazyConnect: true,
    retryStrategy: () => null,
    maxRetriesPerRequest: 0,
  });
  server.on("error", () => {}); // the call that fails tells it
  const consumer = new Consumer(server, prefix, streams, new Position(values.position));
  process.on("SIGINT", () => consumer.stop());
  process.on("SIGTERM", () => consumer.stop());
  try {
    await server.connect();
    await consumer.run(Number(values["until-idle"]) * 1000);
  } finally {
    server.disconnect();
  }
}

main().catch((error: unknown) => {
  process.stderr.write(`error: ${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
});
