// Scores raw rows in the browser: the model is fetched from the server once, rows are not sent anywhere.

import * as ort from "./ort.wasm.min.mjs";
import {RawRowReader} from "./raw_rows.mjs";

const PIECE_BYTES = 8 << 20;

/** One model in this browser. */
export class BrowserScorer {
  constructor(reader, session) { this.reader = reader; this.session = session; }

  /** Fetches what scoring needs; `progress` is told the bytes that are there and those that there will be. */
  static async open(progress = () => {}) {
    const at = (name) => new URL(name, import.meta.url);
    const answer = await fetch(at("files.json")), files = await answer.json();
    if (!answer.ok) throw new Error(files.error);
    let done = 0;
    // Of model.safetensors columns and vocabulary alone are read: the tables come with the ONNX file.
    const total = files.bytes["model.onnx"] + files.bytes.tables;
    const read = async (name, begin, end) => {
      const bytes = new Uint8Array(end - begin);
      for (let first = begin; first < end; first += PIECE_BYTES) {
        const last = Math.min(first + PIECE_BYTES, end) - 1;
        const headers = {"Range": `bytes=${first}-${last}`, "If-Match": `"${files.checksum}"`};
        const piece = await fetch(at(name), {headers});
        if (piece.status !== 206) throw new Error((await piece.json()).error);
        bytes.set(new Uint8Array(await piece.arrayBuffer()), first - begin);
        done += last + 1 - first;
        progress(done, Math.max(total, done));
      }
      return bytes;
    };
    const reader = await RawRowReader.open((begin, end) => read("model.safetensors", begin, end));
    const graph = await read("model.onnx", 0, files.bytes["model.onnx"]);
    const tables = {path: files.tables_name, data: await read("tables", 0, files.bytes.tables)};
    ort.env.wasm.wasmPaths = at("./").href;
    ort.env.wasm.numThreads = 1;  // more need a page that is isolated from every other one
    const session = await ort.InferenceSession.create(graph, {externalData: [tables], executionProviders: ["wasm"]});
    return new BrowserScorer(reader, session);
  }

  /** Returns the probability of each row, an object of cells. */
  async probabilities(rows) {
    const {dense, ids} = this.reader.prepare(rows), shape = (values) => [rows.length, values.length / rows.length];
    const {probabilities} = await this.session.run({
      dense: new ort.Tensor("float32", dense, shape(dense)),
      ids: new ort.Tensor("int64", ids, shape(ids)),
    }, ["probabilities"]);
    return Array.from(probabilities.data);
  }
}
