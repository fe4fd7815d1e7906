/** Decodes what docs/wire.md describes, with @msgpack/msgpack alone. */

import { decode as unpack } from "@msgpack/msgpack";

export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };
export type Fields = { [key: string]: Json };

// prettier-ignore
const TICK = [
  "time", "lastPrice", "open", "high", "low", "lastClose", "amount", "volume", "pvolume",
  "stockStatus", "openInt", "transactionNum", "lastSettlementPrice", "settlementPrice", "pe",
  "askPrice", "bidPrice", "askVol", "bidVol", "volRatio", "speed1Min", "speed5Min", "extra",
  "flags",
];
// prettier-ignore
const BAR = [
  "time", "open", "high", "low", "close", "volume", "amount", "settelementPrice",
  "openInterest", "preClose", "suspendFlag", "closed", "extra",
];
// prettier-ignore
const PRICES = new Set([
  "lastPrice", "open", "high", "low", "lastClose", "close", "lastSettlementPrice",
  "settlementPrice", "askPrice", "bidPrice", "settelementPrice", "preClose",
]);

/**
 * Yuan: an integer is scaled by 10,000, a float is the price itself. JavaScript has one kind of
 * number, so 64-bit integers are unpacked as bigint; a number is then an integer below 2^32 or a
 * float, and no literal float is a whole number below 2^32: that would have been scaled.
 */
function price(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(price);
  if (typeof value === "bigint") return Number(value) / 10_000;
  if (typeof value !== "number") return value;
  return Number.isInteger(value) && Math.abs(value) < 2 ** 32 ? value / 10_000 : value;
}

/** What JSON can hold: null for NaN and infinities, hex for bytes. */
function plain(value: unknown): Json {
  if (typeof value === "number") return Number.isFinite(value) ? value : null;
  if (typeof value === "bigint") return Number(value);
  if (value instanceof Uint8Array) return Buffer.from(value).toString("hex");
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value === "object" && value !== null) {
    return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, plain(one)]));
  }
  return value as null | boolean | string;
}

/** An array's elements by name; later versions may have more elements. */
function named(names: string[], row: unknown[]): Fields {
  const values: Fields = {};
  names.forEach((name, at) => {
    values[name] = plain(PRICES.has(name) ? price(row[at]) : row[at]);
  });
  values["extra"] ??= {};
  return values;
}

const unpacked = (data: Uint8Array): unknown => unpack(data, { useBigInt64: true });

export function tick(code: string, id: string, data: Uint8Array): Fields {
  return { code, id, ...named(TICK, unpacked(data) as unknown[]) };
}

export function batch(data: Uint8Array): Fields[] {
  const rows = unpacked(data) as [string, string, unknown[]][];
  return rows.map(([code, id, row]) => ({ code, id, ...named(TICK, row) }));
}

/** The records of any schema. */
export function decode(schema: string, data: Uint8Array): Json {
  const value = unpacked(data) as unknown[];
  switch (schema) {
    case "t1":
      return named(TICK, value);
    case "k1":
      return named(BAR, value);
    case "b1":
      return batch(data);
    case "c1":
      return (value as [string, string, string, unknown[]][]).map(([code, period, id, row]) => ({
        code,
        period,
        id,
        ...named(BAR, row),
      }));
    case "latest":
      return { id: value[0] as string, ...named(TICK, value[1] as unknown[]) };
    default:
      throw new Error(`schema ${schema} is not known`);
  }
}
