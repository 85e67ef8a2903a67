// Checks a window's outcome in the browser: docs/protocol.md, "Release log" and "Total".
//
// verify(proof, pinned) resolves to what the log says of the window, or throws with the reason.
// Ed25519 and SHA-256 are the browser's own (Web Cryptography API).

const TOTAL_DOMAIN = "gridveil/v1/total";
const text = new TextDecoder("utf-8", { fatal: true });
const bytes = new TextEncoder();

export class Unproven extends Error {}

export async function verify(proof, pinned) {
  const origin = `gridveil/${pinned.cityId}`;
  const head = await openCheckpoint(proof.checkpoint, origin, pinned.identityKey);
  const record = fromBase64(proof.record);
  const leaf = await sha256(concat(new Uint8Array([0]), record));
  const root = await rootFromInclusion(leaf, proof.index, head.size, proof.hashes.map(fromBase64));
  need(equal(root, head.root), "the record is not under the checkpoint");
  const settled = readRecord(record);
  need(settled.windowStart === proof.window_start, "the record is of another window");
  if (settled.status !== "released") return { ...settled, size: head.size };
  await checkSignature(pinned.identityKey, settled.signature, settled.total, "the total");
  const total = readTotal(settled.total);
  need(total.cityId === pinned.cityId, "the total is of another city");
  need(total.windowStart === settled.windowStart, "the total is of another window");
  return { ...settled, ...total, size: head.size };
}

// A C2SP tlog-checkpoint in a signed note: three lines, an empty one, signature lines.
export async function openCheckpoint(note, origin, identityKey) {
  const split = note.lastIndexOf("\n\n");
  need(split > 0, "the checkpoint is no signed note");
  const signed = note.slice(0, split + 1);
  const lines = signed.split("\n");
  need(lines.length === 4 && lines[0] === origin, "the checkpoint is of another log");
  need(/^(0|[1-9][0-9]{0,15})$/.test(lines[1]), "the checkpoint has no size");
  const keyId = (
    await sha256(concat(bytes.encode(`${origin}\n`), new Uint8Array([1]), fromHex(identityKey)))
  ).slice(0, 4);
  for (const line of note.slice(split + 2).split("\n")) {
    const found = /^— (\S+) (\S+)$/.exec(line);
    if (!found || found[1] !== origin) continue;
    const value = fromBase64(found[2]);
    if (!equal(value.slice(0, 4), keyId)) continue;
    await checkSignature(identityKey, value.slice(4), bytes.encode(signed), "the checkpoint");
    return { size: Number(lines[1]), root: fromBase64(lines[2]) };
  }
  throw new Unproven("the checkpoint is not signed by the pinned key");
}

// RFC 9162, section 2.1.3.2.
export async function rootFromInclusion(leaf, index, size, hashes) {
  need(Number.isSafeInteger(index) && index >= 0 && index < size, "the record has no place");
  let place = BigInt(index);
  let last = BigInt(size) - 1n;
  let hash = leaf;
  for (const sibling of hashes) {
    need(last !== 0n, "the proof is too long");
    if (place & 1n || place === last) {
      hash = await node(sibling, hash);
      while (!(place & 1n) && place !== 0n) {
        place >>= 1n;
        last >>= 1n;
      }
    } else {
      hash = await node(hash, sibling);
    }
    place >>= 1n;
    last >>= 1n;
  }
  need(last === 0n, "the proof is too short");
  return hash;
}

// LogRecord of protos/gridveil/v1/log.proto: what settles a window, and nothing else.
function readRecord(data) {
  const record = fields(data);
  if (record.has(3)) {
    const released = fields(record.get(3));
    const signed = fields(released.get(2));
    return {
      status: "released",
      windowStart: Number(released.get(1)),
      total: signed.get(1),
      signature: signed.get(2),
      recordedAt: Number(record.get(1)) / 1000,
    };
  }
  const [event, status] = record.has(4) ? [4, "refused"] : [5, "expired"];
  need(record.has(event), "the record settles no window");
  const body = fields(record.get(event));
  const spent = event === 4 && body.get(4) === 1n;
  return {
    status: spent ? "budget_exhausted" : status,
    windowStart: Number(body.get(1)),
    recordedAt: Number(record.get(1)) / 1000,
  };
}

// Protocol buffers' wire format: varints and length-delimited fields, each at most once.
function fields(data) {
  need(data instanceof Uint8Array, "the record is malformed");
  const found = new Map();
  let at = 0;
  const varint = () => {
    let value = 0n;
    for (let shift = 0n; shift < 64n; shift += 7n) {
      need(at < data.length, "the record is cut off");
      const byte = data[at++];
      value |= BigInt(byte & 127) << shift;
      if (byte < 128) return value;
    }
    throw new Unproven("the record is malformed");
  };
  while (at < data.length) {
    const tag = Number(varint());
    const number = tag >> 3;
    need(!found.has(number), "the record says a thing twice");
    if ((tag & 7) === 0) {
      found.set(number, varint());
    } else {
      need((tag & 7) === 2, "the record is malformed");
      const size = Number(varint());
      need(at + size <= data.length, "the record is cut off");
      found.set(number, data.subarray(at, at + size));
      at += size;
    }
  }
  return found;
}

// docs/protocol.md, "Total": little-endian. Only what is shown is taken from it.
function readTotal(data) {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  let at = 0;
  const take = (size) => {
    need(at + size <= data.length, "the total is cut off");
    at += size;
    return at - size;
  };
  const label = () => {
    const size = data[take(1)];
    const start = take(size);
    return text.decode(data.subarray(start, start + size));
  };
  const u64 = () => Number(view.getBigUint64(take(8), true));
  const u32 = () => view.getUint32(take(4), true);
  need(label() === TOTAL_DOMAIN, "what is signed is no total");
  const cityId = toHex(data.subarray(take(16), at));
  take(16 + 32);
  const windowStart = u64();
  const windowLength = u32();
  take(8);
  const enrolled = u64();
  const count = u64();
  const lanes = u32();
  const leftOut = Array.from({ length: u32() }, u32);
  take(64);
  const sums = {};
  for (let left = data[take(1)]; left > 0; left--) {
    const name = label();
    const unit = label();
    sums[name] = { unit, sum: view.getBigInt64(take(8), true) };
  }
  return { cityId, windowStart, windowLength, enrolled, count, lanes, leftOut, sums };
}

async function checkSignature(keyHex, signature, signed, what) {
  const key = await crypto.subtle.importKey("raw", fromHex(keyHex), "Ed25519", false, ["verify"]);
  const good = await crypto.subtle.verify("Ed25519", key, signature, signed);
  need(good, `${what} is not signed by the pinned key`);
}

async function node(left, right) {
  return sha256(concat(new Uint8Array([1]), left, right));
}

async function sha256(data) {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", data));
}

function need(holds, why) {
  if (!holds) throw new Unproven(why);
}

function concat(...parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

function equal(one, other) {
  return one.length === other.length && one.every((byte, at) => byte === other[at]);
}

function fromHex(value) {
  return Uint8Array.from(value.match(/../g) ?? [], (pair) => Number.parseInt(pair, 16));
}

function toHex(data) {
  return Array.from(data, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function fromBase64(value) {
  try {
    return Uint8Array.from(atob(value), (letter) => letter.charCodeAt(0));
  } catch {
    throw new Unproven("the proof is malformed");
  }
}
