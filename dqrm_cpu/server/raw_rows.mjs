// What an exported model reads of raw rows, computed in a browser or in Node: the numbers and ids of its ONNX file.
//
//   const reader = await RawRowReader.open(read);   read(begin, end): a promise of bytes of model.safetensors
//   const {dense, ids} = reader.prepare([{site: "a.com", hour: "7"}]);
//
// The same rules as dqrm_cpu.serving: cells are texts as they stand in a log, null, booleans, whole numbers, or lists.

const LARGEST_FLOAT32 = 3.4028234663852886e38;
const INCREMENT = 0x9E3779B97F4A7C15n, FACTOR_1 = 0xBF58476D1CE4E5B9n, FACTOR_2 = 0x94D049BB133111EBn;
const NUMBER = /^-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?$/;
const WHOLE_WITH_POINT = /^-?[0-9]+\.0+$/;
const MOST_HEADER_BYTES = 4 << 20;
const NO_ID = -1n;

/** A value that cannot be scored: the message says which and where. */
export class UnusableRowError extends Error {
  constructor(why, row, column) { super(`row ${row}, column ${column}: ${why}`); }
}

/** Reads raw rows for one model. */
export class RawRowReader {
  constructor(model, vocabulary) {
    this.model = model;
    this.vocabulary = vocabulary;  // by number of the table: keys in rising order, and the row of each
    this.dense = model.numbers.filter(({transform}) => transform !== "buckets");
    this.numSlots = model.categories.reduce((sum, {limit}) => sum + (limit || 1), 0);
  }

  /** Reads the columns of a model, and its vocabulary but not its tables, from the file that `export` wrote. */
  static async open(read) {
    const length = Number(new DataView((await read(0, 8)).slice(0, 8).buffer).getBigUint64(0, true));
    if (length > MOST_HEADER_BYTES) throw new Error(`a header of ${length} bytes: this is no exported model`);
    const header = JSON.parse(new TextDecoder().decode(await read(8, 8 + length)));
    if (header.__metadata__?.format !== "3") throw new Error("this is no exported model of format 3");
    const tensor = async (name, kinds) => {
      const {dtype, data_offsets: [begin, end]} = header[name];
      const bytes = await read(8 + length + begin, 8 + length + end);
      return new kinds[dtype](bytes.slice().buffer);
    };
    const model = JSON.parse(header.__metadata__.model), vocabulary = [];
    for (const [t, {kind}] of model.categories.entries()) {
      if (kind === "buckets" || model.ids.hash_rows) continue;
      vocabulary[t] = {
        keys: await tensor(`C${t + 1}.keys`, {U32: Uint32Array, U64: BigUint64Array}),
        rows: await tensor(`C${t + 1}.rows`, {I32: Int32Array}),
      };
    }
    return new RawRowReader(model, vocabulary);
  }

  /** Returns dense, Float32Array [n x D], and ids, BigInt64Array [n x S], of rows that are objects of cells. */
  prepare(rows) {
    const {numbers, categories} = this.model;
    for (const {name} of [...numbers, ...categories]) {
      if (rows.length && !rows.some((row) => name in row)) throw new Error(`there is no column '${name}'`);
    }
    const dense = new Float32Array(rows.length * this.dense.length);
    const ids = new BigInt64Array(rows.length * this.numSlots).fill(NO_ID);
    rows.forEach((row, n) => {
      const values = new Map(numbers.map((column) => [column.name, readNumber(column, row[column.name] ?? null, n)]));
      this.dense.forEach((column, k) => {
        dense[n * this.dense.length + k] = TRANSFORMS[column.transform](values.get(column.name), column.numbers);
      });
      let slot = n * this.numSlots;
      categories.forEach((column, t) => {
        const cell = row[column.name] ?? null;
        if (column.kind === "buckets") {
          const {numbers: edges} = numbers.find(({name}) => name === column.name);
          ids[slot] = BigInt(bucket(values.get(column.name), edges));
        } else if (column.kind === "bag") {
          bagKeys(column, cell, n).forEach((key, place) => { ids[slot + place] = this.id(t, key); });
        } else {
          ids[slot] = this.id(t, column.kind === "hex" ? hexKey(cell, n, column.name) : textKey(text(cell, n, column.name)));
        }
        slot += column.limit || 1;
      });
    });
    return {dense, ids};
  }

  /** Returns the row of a key in a table: by the vocabulary, or by hashing. */
  id(t, key) {
    const {max_ind_range: modulus, hash_rows: hashed} = this.model.ids;
    if (modulus) key %= BigInt(modulus);
    if (key === 0n) return 0n;
    if (hashed) {
      const spread = (word) => BigInt.asUintN(64, (word ^ (word >> 29n)) * INCREMENT);
      const first = spread(key);
      return 1n + (spread(first ^ (first >> 32n)) >> 32n) % BigInt(hashed - 1);
    }
    const {keys, rows} = this.vocabulary[t], wanted = keys instanceof Uint32Array ? Number(key) : key;
    const place = searchSorted(keys, wanted, false);
    return keys[place] === wanted ? BigInt(rows[place]) : 0n;
  }
}

/** Returns how many of rising values are below one, or not above it. */
function searchSorted(values, wanted, right) {
  let low = 0, high = values.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (right ? values[middle] <= wanted : values[middle] < wanted) low = middle + 1;
    else high = middle;
  }
  return low;
}

function readNumber({name, kind}, cell, row) {
  const value = plainNumber(cell, name, row);
  const isWhole = Number.isInteger(value) && value >= -(2 ** 31) && value < 2 ** 31;
  if (Number.isNaN(value) || (kind === "integer" ? isWhole : Number.isFinite(value))) return value;
  throw new UnusableRowError(`'${cell}' is not ${kind === "integer" ? "a whole" : "a finite"} number`, row, name);
}

function plainNumber(cell, name, row) {
  if (cell === null) return NaN;
  if (typeof cell === "number" || typeof cell === "boolean") return Number(cell);
  if (typeof cell === "string") {
    if (isMissing(cell)) return NaN;
    const truth = ["false", "true"].indexOf(cell.toLowerCase());
    if (truth >= 0) return truth;
    if (NUMBER.test(cell)) return Number(cell);
  }
  throw new UnusableRowError(`'${cell}' is not a number`, row, name);
}

function isMissing(cell) {
  return cell === "" || cell === "\\N" || ["nan", "null"].includes(cell.toLowerCase());
}

function rounded(value) {
  return Math.fround(Math.min(Math.max(value, -LARGEST_FLOAT32), LARGEST_FLOAT32));
}

const TRANSFORMS = {
  log: (value) => Math.log1p(Math.max(value || 0, 0)),
  identity: (value) => rounded(value) || 0,
  standard: (value, [mean, deviation]) => rounded((rounded(value) - mean) / deviation) || 0,
  quantile: (value, knots) => {
    if (Number.isNaN(value)) return 0.5;
    const last = knots.length - 1, rank = (k) => (k === last ? Number(last > 0) : k * (1 / last));
    const within = (k) => Math.min(Math.max(k, 0), last);
    const below = within(searchSorted(knots, rounded(value), true) - 1);
    const above = within(searchSorted(knots, rounded(value), false));
    const width = knots[above] - knots[below];
    const share = width > 0 ? Math.min(Math.max((rounded(value) - knots[below]) / width, 0), 1) : 0.5;
    return rank(below) + (rank(above) - rank(below)) * share;
  },
};

function bucket(value, edges) {
  return Number.isNaN(value) ? 0 : 1 + searchSorted(edges, rounded(value), true);
}

/** Returns the text of a category, empty where it is missing; what programs write differently is the same. */
function text(cell, row, name) {
  if (typeof cell === "boolean" || Number.isSafeInteger(cell)) cell = String(cell);
  if (cell === null || (typeof cell === "number" && Number.isNaN(cell))) return "";
  if (typeof cell === "number") throw new UnusableRowError(`give ${cell} as a text, as it stands in a log`, row, name);
  if (typeof cell !== "string") throw new UnusableRowError(`a value of the type ${typeof cell} is no category`, row, name);
  if (isMissing(cell)) return "";
  if (["true", "false"].includes(cell.toLowerCase())) return cell.toLowerCase();
  return WHOLE_WITH_POINT.test(cell) ? cell.slice(0, cell.indexOf(".")) : cell;
}

function hexKey(cell, row, name) {
  if (Number.isInteger(cell) && cell >= 0 && cell < 2 ** 32) return BigInt(cell);
  const digits = text(cell, row, name);
  if (digits === "") return 0n;
  if (typeof cell === "string" && /^[0-9a-fA-F]{1,8}$/.test(digits)) return BigInt(`0x${digits}`);
  throw new UnusableRowError(`'${cell}' is not a hash of 1 to 8 hexadecimal digits`, row, name);
}

/** Hashes a text to 64 bits, never 0 but for an empty one: a round of splitmix64 for every 8 bytes, and one more. */
function textKey(words) {
  const bytes = new TextEncoder().encode(words);
  if (!bytes.length) return 0n;
  const padded = new DataView(new ArrayBuffer(8 * Math.ceil(bytes.length / 8)));
  bytes.forEach((byte, k) => padded.setUint8(k, byte));
  let hashed = INCREMENT ^ BigInt(bytes.length);
  for (let k = 0; k < padded.byteLength; k += 8) hashed = mixed(hashed ^ padded.getBigUint64(k, true));
  return mixed(hashed) || 1n;
}

function mixed(word) {
  word = BigInt.asUintN(64, (word ^ (word >> 30n)) * FACTOR_1);
  word = BigInt.asUintN(64, (word ^ (word >> 27n)) * FACTOR_2);
  return word ^ (word >> 31n);
}

/** Returns the keys of the different values of a cell, as many as the limit. */
function bagKeys(column, cell, row) {
  if (cell === null || (typeof cell === "number" && Number.isNaN(cell))) return [];
  let parts = [cell];
  if (Array.isArray(cell)) parts = cell;
  else if (typeof cell === "string" && (column.separator || isMissing(cell))) {
    parts = column.separator ? cell.split(column.separator) : [];
  } else if (!column.separator) throw new UnusableRowError(`'${cell}' is no list of values`, row, column.name);
  const stripped = parts.map((part) => (typeof part === "string" ? part.replace(/^ +| +$/g, "") : part ?? null));
  const keys = stripped.map((part) => text(part, row, column.name)).filter(Boolean).map(textKey);
  return [...new Set(keys)].slice(0, column.limit);
}
